"""The kit passes what is right, and says of each fault which promise it breaks."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from deepnarrow import testing
from deepnarrow.cli import main
from deepnarrow.errors import InputError
from deepnarrow.formats import CheckpointFormat, CheckpointHeader
from deepnarrow.modality import FlopTerm, Metric, ParamArray, Scores, axes_tree
from deepnarrow.plugins import PluginInfo
from deepnarrow.testing import (
    CHECKS,
    CheckFailed,
    Subject,
    check_modality,
    make_subject,
    modality_checks,
)
from deepnarrow.testing.subject import BATCH_SIZE

RIGHT = toy.toy_modality()


# --- faults: check -> (what is changed, words of the message) -------------------------------------
def with_model(change):
    """The modality whose models are changed: `change(model, shape, options) -> fields`."""
    def assemble(shape, options, stacks):
        model = RIGHT.assemble(shape, options, stacks)
        return dataclasses.replace(model, **change(model, shape, options))

    return dataclasses.replace(RIGHT, assemble=assemble)


def with_frame(arrays=(), flops=lambda shape: (), without=(), change=lambda model, shape: {}):
    """The modality whose frame counts other arrays and FLOPs, and whose models change with it."""
    def count_frame(shape, options):
        costs = RIGHT.count_frame(shape, options)
        kept = tuple(array for array in costs.arrays if array.path not in without)
        return dataclasses.replace(costs, arrays=(*kept, *(one(shape) for one in arrays)),
                                   flops=(*costs.flops, *flops(shape)))

    changed = with_model(lambda model, shape, options: change(model, shape))
    return dataclasses.replace(changed, count_frame=count_frame)


def with_array(path, size, axes, use=lambda x: jnp.sum(x ** 2), make=jnp.zeros):
    """One more array in frame, params and axes; `use(array)` is added to the loss."""
    def change(model, shape):
        array = ParamArray((path,), size(shape), axes, "embedding")

        def loss(params, batch, key, *, train):
            out = model.loss(params, batch, key, train=train)
            return out._replace(loss_sum=out.loss_sum + out.weight_sum * use(params[path]))

        return {"init": lambda key: model.init(key) | {path: make(array.shape)}, "loss": loss,
                "param_axes": model.param_axes | axes_tree([array])}

    return with_frame([lambda shape: ParamArray((path,), size(shape), axes, "embedding")],
                      change=change)


def with_loss(change):
    def changed(model, shape, options):
        return {"loss": lambda params, batch, key, *, train: change(
            functools.partial(model.loss, train=train), params, batch, key)}

    return with_model(changed)


def with_upstream(change):
    return dataclasses.replace(RIGHT, upstream=lambda data, options: change(
        RIGHT.upstream(data, options)))


def with_train(change):
    return with_upstream(lambda upstream: dataclasses.replace(
        upstream, train=change(upstream.train)))


def with_task(**fields):
    def tasks(data, options):
        (task,) = RIGHT.tasks(data, options).values()
        return {task.name: dataclasses.replace(task, **{
            name: value(task) for name, value in fields.items()})}

    return dataclasses.replace(RIGHT, tasks=tasks)


def counting():
    calls = itertools.count()
    return with_train(lambda source: dataclasses.replace(source, load=lambda index, rng: {
        **source.load(index, rng), "inputs": source.load(index, rng)["inputs"] + next(calls)}))


def growing(source):
    return dataclasses.replace(source, load=lambda index, rng: {
        **source.load(index, rng), "inputs": np.zeros((4 + index % 2, 4), np.float32)})


def mean_loss(loss, params, batch, key):
    out = loss(params, batch, key)
    return out._replace(loss_sum=out.loss_sum / out.weight_sum, weight_sum=jnp.float32(1))


def unmasked_loss(loss, params, batch, key):
    return loss(params, {**batch, "example_mask": jnp.ones_like(batch["example_mask"])}, key)


def high_loss(loss, params, batch, key):
    out = loss(params, batch, key)
    return out._replace(loss_sum=out.loss_sum + 20 * out.weight_sum)


def with_training_loss(change):
    """The modality whose training loss is multiplied by `change(batch)`."""
    def changed(model, shape, options):
        def loss(params, batch, key, *, train):
            out = model.loss(params, batch, key, train=train)
            return out._replace(loss_sum=out.loss_sum * (change(batch) if train else 1.0))

        return {"loss": loss}

    return with_model(changed)


def batch_statistics(batch):
    return 1 + jnp.mean(jnp.arange(len(batch["inputs"])) * jnp.sum(batch["inputs"], axis=(1, 2)))


def stray_dropout(batch):
    kept = jax.random.bernoulli(jax.random.key(0), 0.5, (len(batch["inputs"]),))
    return 1 + jnp.mean(kept * jnp.arange(len(kept)))


def host_noise(batch, draws=itertools.count()):  # noqa: B008 - the very fault
    # A number of the trace: another program draws another. Only the loop gives ids.
    return 1.0 + 0.1 * next(draws) if "example_id" in batch else 1.0


def one_buffer(upstream):
    buffer = np.zeros((toy.LENGTH, toy.CHANNELS), np.float32)

    def load(index, rng):
        example = upstream.validation.load(index, rng)
        buffer[:] = example["inputs"]
        return {**example, "inputs": buffer}

    return dataclasses.replace(upstream, validation=dataclasses.replace(
        upstream.validation, load=load))


def eager_module():
    subject = make_subject(RIGHT)
    info = PluginInfo("toy", "toy", "1.0", module="deepnarrow.train",
                      names={"modalities": ("toy",)})
    return dataclasses.replace(subject, registry=dataclasses.replace(
        subject.registry, plugins=(info,)))


def one_key(model, shape, options):
    def loss(params, batch, key, *, train):
        return model.loss(params, batch, toy_key() if train else key, train=train)

    return {"loss": loss}


def subject_of(made):
    return made if isinstance(made, Subject) else make_subject(made)


def no_small_mlp(shape, options):
    if shape.d_ff == 2:
        raise ValueError("too small")
    return RIGHT.stack_specs(shape, options)


def silent_adapt(params, source, target, key):
    return RIGHT.adapt(params, source, target, key)[0], ()


def old_head(params, source, target, key):
    return params, ()


def random_hash(upstream):
    train = dataclasses.replace(upstream.train, content_hash=str(np.random.default_rng().random()))
    return dataclasses.replace(upstream, train=train)


def forgetful_format():
    saved = {}

    def write(path, shape, options, params):
        saved.update(shape=shape, params=params)

    return CheckpointFormat(
        lambda path: CheckpointHeader(saved["shape"], {}, ()),
        lambda path, header: {**saved["params"], "embedding": {
            "kernel": saved["params"]["embedding"]["kernel"].T}}, write)


FAULTS = {
    "no preset tiny": ("registration", "no preset 'tiny'", lambda: dataclasses.replace(
        RIGHT, presets={"base": RIGHT.presets["base"]})),
    "hash of the moment": ("content_hash", "hash the data's bytes",
                           lambda: with_upstream(random_hash)),
    "data that count calls": ("loading_is_a_function", "keep no state", counting),
    "lengths that differ": ("examples_have_one_form", "pad or cut", lambda: with_train(growing)),
    "test split is training": ("splits_share_no_example", "is in the training split",
                               lambda: with_task(
                                   examples=lambda task: lambda split: task.examples("train"),
                                   baseline=lambda task: None)),  # of as many rows as test has
    "validation is training": ("splits_share_no_example", "upstream: example .* in the training",
                               lambda: with_upstream(lambda upstream: dataclasses.replace(
                                   upstream, validation=dataclasses.replace(
                                       upstream.train, content_hash="another")))),
    "a metric nobody measures": ("metrics", "the model's loss measures accuracy, loss",
                                 lambda: with_upstream(lambda upstream: dataclasses.replace(
                                     upstream, metric=Metric("acuracy", "max")))),
    "a task's metric with a typo": ("metrics", "score returns accuracy", lambda: with_task(
        metric=lambda task: Metric("acuracy", "max"))),
    "a score that raises": ("metrics", "raises KeyError", lambda: with_task(
        score=lambda task: lambda predictions, labels: {}["accuracy"])),
    "a score of nothing": ("metrics", "finite number", lambda: with_task(
        score=lambda task: lambda predictions, labels: Scores({"accuracy": np.nan}, None))),
    "a baseline that raises": ("metrics", "mend the task's baseline", lambda: with_task(
        baseline=lambda task: lambda split: undefined)),  # pyright: ignore[reportUndefinedVariable]
    "features of a task's examples that are no numbers": (
        "features", "task toy_task's examples are not finite", lambda: with_model(
            lambda model, shape, options: {"features": lambda params, batch: (
                model.features(params, batch) * jnp.where(
                    len(batch["example_mask"]) < BATCH_SIZE, jnp.nan, 1.0))})),
    "dropout that ignores the key and its rate": (
        "arrangements_agree", "dropout that does not use `key`", lambda: with_training_loss(
            stray_dropout)),
    "a baseline of fewer rows": ("metrics", "a row for every example", lambda: with_task(
        baseline=lambda task: lambda split: task.baseline(split)[1:])),
    "dropout of one key": ("dropout_follows_the_key", "draw dropout from `key`",
                           lambda: with_model(one_key)),
    "labels in another order": ("labels", "another label than labels", lambda: with_task(
        examples=lambda task: lambda split: dataclasses.replace(
            task.examples(split), labels=lambda: np.roll(task.examples(split).labels(), 1)))),
    "count without the bias": ("params_are_counted", "head/bias is", lambda: with_frame(
        without=[("head", "bias")])),
    "an axis without a name": ("axes", "has 2 axes and 1 names", lambda: with_model(
        lambda model, shape, options: {"param_axes": {
            **model.param_axes, "embedding": {"kernel": ("embed",)}}})),
    "an axis nobody knows": ("axes", "the core knows", lambda: with_model(
        lambda model, shape, options: {"param_axes": {
            **model.param_axes, "embedding": {"kernel": ("colour", "embed")}}})),
    "small MLPs crash": ("operators_build", "tiny-ff2 raises ValueError",
                         lambda: dataclasses.replace(RIGHT, stack_specs=no_small_mlp)),
    "depth outside the stack": ("depth_is_layers", "gate is", lambda: with_array(
        "gate", lambda shape: (shape.num_encoder_layers,), (None,))),
    "hidden units called embed": ("operators_change_what_they_claim", "name the axis so",
                                  lambda: with_array("gate", lambda shape: (shape.d_ff,),
                                                     ("embed",))),
    "a table without names": ("big_arrays_are_split", "name its long axis", lambda: with_array(
        "table", lambda shape: (32, 32), (None, None))),
    "FLOPs counted tenfold": ("flops_are_counted", "XLA counts", lambda: with_frame(
        flops=lambda shape: (FlopTerm("head", "weight", 1e6),))),
    "FLOPs of depth squared": ("flops_grow_with_depth", "what every layer does", lambda: with_frame(
        flops=lambda shape: (FlopTerm("head", "weight", 1.0 * shape.num_encoder_layers ** 2),))),
    "MLPs counted as if narrow": (
        "flops_grow_with_width", "the shape's own sizes", lambda: with_frame(
            flops=lambda shape: (FlopTerm("head", "weight", -4.0 * toy.LENGTH * shape.d_model
                                          * shape.num_encoder_layers * max(0, shape.d_ff - 32)),))),
    "one init for all keys": ("init_follows_the_key", "draw them from the key", lambda: with_model(
        lambda model, shape, options: {"init": lambda key: model.init(toy_key())})),
    "mean instead of sum": ("loss_is_a_sum", "not means", lambda: with_loss(mean_loss)),
    "padding counts": ("masked_examples_count_for_nothing", "multiply every weight",
                       lambda: with_loss(unmasked_loss)),
    "an idle parameter": ("every_parameter_learns", "spare has no gradient", lambda: with_array(
        "spare", lambda shape: (shape.d_model,), ("embed",), lambda x: 0.0)),
    "features of the batch": ("features", "let none see another", lambda: with_model(
        lambda model, shape, options: {"features": lambda params, batch: (
            lambda x: x + jnp.cumsum(x, axis=0))(model.features(params, batch))})),
    "features less the batch's mean": ("features", "let none see another", lambda: with_model(
        lambda model, shape, options: {"features": lambda params, batch: (
            lambda x: x - x.mean(axis=0))(model.features(params, batch))})),
    "features that are no numbers": ("features", "are not finite", lambda: with_model(
        lambda model, shape, options: {"features": lambda params, batch: (
            model.features(params, batch) * jnp.nan)})),
    "features know the label": ("labels_do_not_leak", "features change with", lambda: with_model(
        lambda model, shape, options: {"features": lambda params, batch: (
            model.features(params, batch) + 0.1 * batch["label"][:, None])})),
    "a head of the old size": ("adapt", "make a new head", lambda: dataclasses.replace(
        RIGHT, adapt=old_head)),
    "a new head nobody hears of": ("adapt", "does not say so", lambda: dataclasses.replace(
        RIGHT, adapt=silent_adapt)),
    "a format that turns a matrix": ("checkpoint_formats", "embedding/kernel does not come back",
                                     lambda: dataclasses.replace(
                                         RIGHT, checkpoint_formats={"odd": forgetful_format()})),
    "features that grow with width": ("scale_of_features", "root mean square", lambda: with_model(
        lambda model, shape, options: {"features": lambda params, batch: (
            model.features(params, batch) * shape.d_model ** 2)})),
    "a module that imports JAX": ("imports_without_jax", "inside the functions that use it",
                                  eager_module),
    "one buffer for all examples": ("stream_is_one_for_all_hosts", "return new arrays",
                                    lambda: with_upstream(one_buffer)),
    "a weakly typed parameter": ("step_compiles_once", "strongly typed", lambda: with_array(
        "gate", lambda shape: (4,), (None,), make=lambda size: jnp.broadcast_to(0.5, size))),
    "a batch that knows itself": ("arrangements_agree", "depend on no other example",
                                  lambda: with_training_loss(batch_statistics)),
    "noise from the host": ("training_resumes", "draw random numbers from the key only",
                            lambda: with_training_loss(host_noise)),
    "a loss that stays high": ("it_learns", "in 100 steps", lambda: with_loss(high_loss)),
}


def toy_key():
    return jax.random.key(7)


# --- tests ----------------------------------------------------------------------------------------
def test_the_toy_keeps_every_promise():
    results = check_modality(make_subject(RIGHT), on_fail="return")
    assert [(r.name, r.message) for r in results if r.outcome != "passed"] == []
    assert [r.name for r in results] == list(CHECKS)


def test_a_task_without_data_is_left_out_and_named():
    def nowhere(split):
        raise InputError("task 'far'", "its data is not configured")

    def tasks(data, options):
        (task,) = RIGHT.tasks(data, options).values()
        return {task.name: task, "far": dataclasses.replace(task, name="far", examples=nowhere)}

    subject = make_subject(dataclasses.replace(RIGHT, tasks=tasks))
    assert list(subject.tasks) == ["toy_task"]
    assert subject.left_out == {"far": "task 'far': its data is not configured"}
    dict(modality_checks(subject))["labels"]()


def test_the_batch_of_a_source_that_is_sorted_by_class_holds_several():
    def by_class(source):
        order = np.argsort(source.labels(), kind="stable")
        return dataclasses.replace(source, load=lambda index, rng: source.load(order[index], rng))

    assert set(make_subject(with_train(by_class)).batch["label"].tolist()) == {0, 1, 2}


def test_every_check_is_public_short_and_says_its_promise():
    for name, check in CHECKS.items():
        assert getattr(testing, f"check_{name}") is check
        assert len(inspect.getsource(check).splitlines()) <= 30
        assert (check.__doc__ or "").splitlines()[0].endswith(".")


def test_every_check_has_a_fault():
    assert {check for check, _, _ in FAULTS.values()} == CHECKS.keys()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_and_the_message_says_what_to_change(fault):
    check, words, make = FAULTS[fault]
    with pytest.raises(CheckFailed, match=words):
        dict(modality_checks(subject_of(make())))[check]()


@pytest.mark.slow
@pytest.mark.parametrize("fault", [f for f in FAULTS if f != "no preset tiny"])
def test_a_fault_breaks_no_other_promise(fault):
    check, _, make = FAULTS[fault]
    results = check_modality(subject_of(make()), on_fail="return")
    assert {r.name: r.message for r in results if r.outcome == "failed"}.keys() == {check}
    assert all(f"mend {check} first" in r.message for r in results if r.outcome == "follows")


def test_an_expected_failure_is_run_and_one_that_passes_is_told():
    subject = make_subject(dataclasses.replace(RIGHT, adapt=silent_adapt))
    fast = {"adapt": "the head is new", "axes": "not named yet"}
    results = {r.name: r for r in check_modality(subject, expected_failures=fast,
                                                 on_fail="return")}
    assert (results["adapt"].outcome, results["adapt"].ok) == ("expected", True)
    assert (results["axes"].outcome, results["axes"].ok) == ("unexpected", False)
    with pytest.raises(InputError, match="did you mean adapt"):
        check_modality(subject, expected_failures={"adap": "x"})


def test_the_command_says_what_is_wrong_with_bad_arguments(capsys):
    assert main(["check", "absent"]) == 2
    assert "absent" in capsys.readouterr().err
    assert main(["check", "vision_vit", "--only", "axes,adap"]) == 2
    assert "no check has that name (got 'adap'). Hint: did you mean adapt?" in (
        capsys.readouterr().err)
    assert main(["check", "text_t5", "--architecture", "big_vision_vit"]) == 2
    assert "is bound to another modality" in capsys.readouterr().err
    assert main(["check", "vision_vit", "--set", "upstrem=x"]) == 2
    assert "upstream" in capsys.readouterr().err


def test_some_checks_are_run_alone(capsys):
    assert main(["check", "vision_vit", "--only", "axes,registration", "--json"]) == 0
    ran = capsys.readouterr()
    assert [c["name"] for c in json.loads(ran.out)["checks"]] == ["registration", "axes"]
    assert "  2/2     passed" in ran.err


@pytest.mark.slow
@pytest.mark.parametrize("modality", ["text_t5", "vision_vit"])
def test_ours_keep_every_promise(modality):
    code = "import sys; from deepnarrow.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", code, "check", modality, "--json"],
                          capture_output=True, text=True, timeout=900, check=False)
    found = json.loads(done.stdout)
    assert [c for c in found["checks"] if c["outcome"] != "passed"] == []
    assert done.returncode == 0
