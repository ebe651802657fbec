"""Every promise of a modality, one function each; `CHECKS` is all of them, cheap ones first."""

from __future__ import annotations

from collections.abc import Callable

from deepnarrow.testing.counting import (
    check_axes,
    check_big_arrays_are_split,
    check_flops_are_counted,
    check_flops_grow_with_depth,
    check_flops_grow_with_width,
    check_params_are_counted,
)
from deepnarrow.testing.examples import (
    check_content_hash,
    check_examples_have_one_form,
    check_labels,
    check_loading_is_a_function,
    check_splits_share_no_example,
    check_stream_is_one_for_all_hosts,
)
from deepnarrow.testing.moving import (
    check_adapt,
    check_checkpoint_formats,
    check_features,
    check_labels_do_not_leak,
    check_metrics,
)
from deepnarrow.testing.numerics import (
    check_dropout_follows_the_key,
    check_every_parameter_learns,
    check_init_follows_the_key,
    check_it_learns,
    check_loss_is_a_sum,
    check_masked_examples_count_for_nothing,
    check_scale_of_features,
)
from deepnarrow.testing.running import (
    check_arrangements_agree,
    check_step_compiles_once,
    check_training_resumes,
)
from deepnarrow.testing.shapes import (
    check_depth_is_layers,
    check_imports_without_jax,
    check_operators_build,
    check_operators_change_what_they_claim,
    check_registration,
)
from deepnarrow.testing.subject import Subject

Check = Callable[[Subject], None]
CHECKS: dict[str, Check] = {
    function.__name__.removeprefix("check_"): function for function in (
        check_registration, check_imports_without_jax,
        check_content_hash, check_loading_is_a_function, check_examples_have_one_form,
        check_splits_share_no_example, check_labels, check_stream_is_one_for_all_hosts,
        check_params_are_counted, check_axes, check_big_arrays_are_split, check_operators_build,
        check_depth_is_layers, check_operators_change_what_they_claim, check_flops_are_counted,
        check_flops_grow_with_depth, check_flops_grow_with_width,
        check_init_follows_the_key, check_loss_is_a_sum, check_masked_examples_count_for_nothing,
        check_dropout_follows_the_key, check_every_parameter_learns, check_features,
        check_labels_do_not_leak, check_metrics, check_adapt,
        check_checkpoint_formats, check_scale_of_features, check_it_learns,
        check_step_compiles_once, check_arrangements_agree, check_training_resumes,
    )
}
