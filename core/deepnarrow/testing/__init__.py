"""The kit that says whether a modality keeps its promises, and what its author must change.

    from deepnarrow.testing import parametrize_with_checks

    @parametrize_with_checks(["my_modality"])
    def test_my_modality(check):
        check()

or `deepnarrow check my_modality`, or `check_modality(...)` in a notebook. Every `check_*` is one
promise; it runs on the preset `tiny`, the general architecture and the modality's own data.
"""

from deepnarrow.testing.checks import (
    CHECKS,
    check_adapt,
    check_arrangements_agree,
    check_axes,
    check_big_arrays_are_split,
    check_checkpoint_formats,
    check_content_hash,
    check_depth_is_layers,
    check_dropout_follows_the_key,
    check_every_parameter_learns,
    check_examples_have_one_form,
    check_features,
    check_flops_are_counted,
    check_flops_grow_with_depth,
    check_flops_grow_with_width,
    check_imports_without_jax,
    check_init_follows_the_key,
    check_it_learns,
    check_labels,
    check_labels_do_not_leak,
    check_loading_is_a_function,
    check_loss_is_a_sum,
    check_masked_examples_count_for_nothing,
    check_metrics,
    check_operators_build,
    check_operators_change_what_they_claim,
    check_params_are_counted,
    check_registration,
    check_scale_of_features,
    check_splits_share_no_example,
    check_step_compiles_once,
    check_stream_is_one_for_all_hosts,
    check_training_resumes,
)
from deepnarrow.testing.run import (
    CheckResult,
    check_modality,
    modality_checks,
    parametrize_with_checks,
)
from deepnarrow.testing.running import fake_devices
from deepnarrow.testing.subject import CheckFailed, Subject, make_subject

__all__ = [
    "CHECKS",
    "CheckFailed",
    "CheckResult",
    "Subject",
    "check_adapt",
    "check_arrangements_agree",
    "check_axes",
    "check_big_arrays_are_split",
    "check_checkpoint_formats",
    "check_content_hash",
    "check_depth_is_layers",
    "check_dropout_follows_the_key",
    "check_every_parameter_learns",
    "check_examples_have_one_form",
    "check_features",
    "check_flops_are_counted",
    "check_flops_grow_with_depth",
    "check_flops_grow_with_width",
    "check_imports_without_jax",
    "check_init_follows_the_key",
    "check_it_learns",
    "check_labels",
    "check_labels_do_not_leak",
    "check_loading_is_a_function",
    "check_loss_is_a_sum",
    "check_masked_examples_count_for_nothing",
    "check_metrics",
    "check_modality",
    "check_operators_build",
    "check_operators_change_what_they_claim",
    "check_params_are_counted",
    "check_registration",
    "check_scale_of_features",
    "check_splits_share_no_example",
    "check_step_compiles_once",
    "check_stream_is_one_for_all_hosts",
    "check_training_resumes",
    "fake_devices",
    "make_subject",
    "modality_checks",
    "parametrize_with_checks",
]
