"""Fine-tuning on the toy task: it learns, compiles once, leaves the checkpoint alone, and stops."""

from __future__ import annotations

import collections
import dataclasses

import jax
import numpy as np
import pytest

from deepnarrow.assemble import make_model
from deepnarrow.errors import InputError, NotApplicable
from deepnarrow.modality import Metric, Scores, Source
from deepnarrow.protocol import FineTune, OptimizerConfig, RunOptions
from deepnarrow.train import train
from deepnarrow.transfer.finetune import (
    finetune,
    majority,
    make_finetune,
    predict_all,
    task_labels,
    truth,
)

ADAMW = OptimizerConfig("adamw", 0.003, "cosine", warmup_steps=5)
CONFIG = FineTune(("toy_task",), examples=810, batch_size=16, optimizer=ADAMW, dropout_rate=0.1)
HEAD = (("head", "kernel"), ("head", "bias"))


def get_task(modality, **changes):
    task = modality.tasks(modality.data_options, modality.options)["toy_task"]
    return dataclasses.replace(task, **changes)


def counting(architecture, traces):
    """`architecture`, counting how often each function of its models is traced."""
    def make(shape, options):
        model = architecture.make_model(shape, options)

        def count(name):
            function = getattr(model, name)

            def counted(*args, **kwargs):
                traces[name] += 1
                return function(*args, **kwargs)
            return counted

        return dataclasses.replace(model, **{n: count(n) for n in ("loss", "predict", "score")})

    return dataclasses.replace(architecture, make_model=make)


@dataclasses.dataclass
class Runs:
    """Two checkpoints fine-tuned by one program, and what that took."""

    ft: object
    checkpoints: list
    before: list
    results: list
    traces_of_first: collections.Counter
    traces_of_all: collections.Counter
    progress: list


@pytest.fixture(scope="module")
def runs(toy):
    modality, architecture = toy
    traces = collections.Counter()
    shape = modality.presets["tiny"].shape
    ft = make_finetune(modality, counting(architecture, traces), shape, modality.options,
                       [get_task(modality)], CONFIG)
    model = make_model(modality, architecture, shape, modality.options)
    checkpoints = [model.init(jax.random.key(i)) for i in range(2)]
    before = jax.tree.map(np.array, checkpoints)
    progress = []
    first = finetune(ft, checkpoints[0], seed=0, progress=lambda *p: progress.append(p))
    after_first = collections.Counter(traces)
    others = [finetune(ft, checkpoints[i], seed=seed) for i, seed in ((0, 1), (1, 0), (0, 0))]
    return Runs(ft, checkpoints, before, [first, *others], after_first,
                collections.Counter(traces), progress)


def scores_of(result, task="toy_task"):
    return result.tasks[task].scores


def test_the_majority_is_that_of_train(toy):
    # Classes in turn: 0 is the first of equals, 11 times in 41.
    assert majority(get_task(toy[0])) == 11 / 41
    assert majority(free_text(get_task(toy[0]))) is None


def assert_trees_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_beats_the_majority_class(runs):
    for result in runs.results:
        assert result.status == "done"
        found = scores_of(result)
        assert found.keys() == {"validation", "test"}
        assert result.tasks["toy_task"].steps == {"validation": 50, "test": 50}
        for split, n in (("validation", 24), ("test", 41)):
            scores = found[split]
            assert scores.metrics["accuracy"] > 0.8
            assert scores.per_example.shape == (n,)
            assert scores.metrics["accuracy"] == scores.per_example.mean()


def test_all_seeds_and_checkpoints_share_one_compilation(runs):
    # The loss is traced once more before anything is trained, to see that model and data fit.
    assert runs.traces_of_first == {"loss": 2, "predict": 1}
    assert runs.traces_of_all == runs.traces_of_first


def test_seeds_decide(runs):
    (a, b, c, again) = (r.params["head"]["kernel"] for r in runs.results)
    assert_trees_equal(runs.results[0].params, runs.results[3].params)
    np.testing.assert_array_equal(a, again)
    assert np.abs(a - b).max() > 1e-3
    assert np.abs(a - c).max() > 1e-3


def test_the_checkpoint_is_left_alone(runs):
    assert_trees_equal(runs.checkpoints, runs.before)


def test_the_head_is_new(runs, toy):
    modality, _ = toy
    assert runs.checkpoints[0]["head"]["kernel"].shape[1] == 3
    for result in runs.results:
        assert result.reinitialised == HEAD
        assert result.params["head"]["kernel"].shape[1] == 4
    assert runs.ft.source_options == modality.options
    assert runs.ft.target_options.num_classes == 4
    assert runs.ft.target_options.dropout_rate == 0.1


def test_curve_and_progress(runs):
    assert runs.ft.program.total_steps == 50  # 810 examples in batches of 16, rounded down
    points = [(p.step, p.value) for p in runs.results[0].curve if p.name == "train/loss"]
    assert [step for step, _ in points] == [20, 40, 50]
    assert points[0][1] > points[-1][1]
    assert {p.stage for p in runs.results[0].curve} == {"fine_tune"}
    assert runs.progress[-1][:2] == (50, 50)


def test_predictions_are_in_order_without_padding(runs, toy):
    modality, architecture = toy
    result = runs.results[0]
    predictions = predict_all(runs.ft.program, result.params, runs.ft.tasks[0], "test", 16)
    assert predictions.shape == (41, 4)
    source = runs.ft.tasks[0].examples("test")
    inputs = np.stack([source.load(i, np.random.default_rng(0))["inputs"] for i in range(41)])
    model = make_model(modality, architecture, modality.presets["tiny"].shape,
                       runs.ft.target_options)
    np.testing.assert_allclose(predictions, model.predict(result.params, {"inputs": inputs}),
                               rtol=1e-5, atol=1e-5)


def relabelled(batch):
    """Rank classification: the same inputs under every label, the last one first."""
    return {"label": np.tile(np.int32([3, 2, 1, 0]), (len(batch["label"]), 1))}


def test_rank_classification_scores_every_candidate(runs, toy):
    ranked = dataclasses.replace(runs.ft.tasks[0], candidates=relabelled)
    params = runs.results[0].params
    scores = predict_all(runs.ft.program, params, ranked, "test", 16)
    logits = predict_all(runs.ft.program, params, runs.ft.tasks[0], "test", 16)
    assert scores.shape == (41, 4)
    np.testing.assert_allclose(scores, jax.nn.log_softmax(logits)[:, ::-1], rtol=1e-5, atol=1e-5)
    ft = dataclasses.replace(runs.ft, tasks=(ranked,))
    result = finetune(ft, runs.checkpoints[0], seed=0)
    assert_trees_equal(result.params, params)  # training is the same
    np.testing.assert_array_equal(scores_of(result)["test"].per_example,
                                  scores.argmax(axis=1) == np.arange(41) % 4)


def test_the_model_sees_each_batch_once_for_all_candidates(runs):
    calls = []

    def score(params, batch, candidates):
        calls.append((batch["inputs"].shape[0], candidates["label"].shape))
        return runs.ft.program.score(params, batch, candidates)

    program = dataclasses.replace(runs.ft.program, score=score)
    ranked = dataclasses.replace(runs.ft.tasks[0], candidates=relabelled)
    predict_all(program, runs.results[0].params, ranked, "test", 16)
    assert calls == [(16, (16, 4))] * 3


def free_text(task, entries=41):
    """The toy's task as one of free text: answers instead of labels, scored in groups of two."""
    def score(predictions, examples):
        hits = np.array([p.argmax() in example["answers"]
                         for p, example in zip(predictions, examples, strict=True)])
        groups = np.array([example["group"] for example in examples])
        return Scores({"em": float(np.mean([hits[groups == g].all() for g in set(groups)]))}, hits)

    def examples(split):
        source = task.examples(split)
        return dataclasses.replace(source, labels=None)

    def references(split):
        return [{"answers": {i % 4}, "group": i // 2}
                for i in range(min(entries, task.examples(split).num_examples))]

    return dataclasses.replace(task, kinds=frozenset({"fine_tune"}), num_classes=None, score=score,
                               examples=examples, references=references,
                               metric=Metric("em", "max"))


def test_free_text_is_scored_against_references(runs):
    ft = dataclasses.replace(runs.ft, tasks=(free_text(runs.ft.tasks[0]),))
    result = finetune(ft, runs.checkpoints[0], seed=0)
    assert_trees_equal(result.params, runs.results[0].params)  # training is the same
    expected = scores_of(runs.results[0])["test"].per_example
    np.testing.assert_array_equal(scores_of(result)["test"].per_example, expected)
    pairs = [expected[i:i + 2].all() for i in range(0, 41, 2)]
    assert scores_of(result)["test"].metrics == {"em": pytest.approx(np.mean(pairs))}


def test_references_are_one_an_example(runs):
    with pytest.raises(InputError, match="another number of references") as caught:
        truth(free_text(runs.ft.tasks[0], entries=40), "test")
    assert (caught.value.got, caught.value.expected) == (40, 41)


# --- the head alone, mixtures, the best checkpoint -----------------------------------------------
def finetune_with(toy, tasks, *, seed=0, checkpoint=0, should_stop=None, **changes):
    modality, architecture = toy
    shape = modality.presets["tiny"].shape
    config = dataclasses.replace(CONFIG, tasks=tuple(t.name for t in tasks), **changes)
    ft = make_finetune(modality, architecture, shape, modality.options, tasks, config)
    params = make_model(modality, architecture, shape, modality.options).init(
        jax.random.key(checkpoint))
    return ft, params, finetune(ft, params, seed=seed, should_stop=should_stop)


def test_the_head_alone_leaves_the_rest_as_it_was(toy):
    ft, params, result = finetune_with(toy, [get_task(toy[0])], train="head", select="best",
                                       eval_every=25)
    for tree in (result.params, result.tasks["toy_task"].params):
        rest = {name: value for name, value in tree.items() if name != "head"}
        assert_trees_equal(rest, {name: params[name] for name in rest})
    state = jax.eval_shape(ft.program.start, result.params)
    sizes = sorted(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim)
    assert sizes == [4, 4, 64, 64]  # two moments of a bias [4] and a kernel [16, 4]
    assert scores_of(result)["test"].metrics["accuracy"] > 0.5


def test_a_model_without_a_head_cannot_train_it(toy):
    modality, architecture = toy

    def headless(shape, options):
        return dataclasses.replace(architecture.make_model(shape, options), head_paths=())

    with pytest.raises(NotApplicable, match=r"the model has no head of its own.*train='all'"):
        make(toy, get_task(modality), dataclasses.replace(CONFIG, train="head"),
             dataclasses.replace(architecture, make_model=headless))


def test_new_parameters_outside_the_head_are_not_left_untrained(toy):
    modality, architecture = toy

    def adapt(*arguments):
        params, paths = modality.adapt(*arguments)
        return params, (*paths, ("embedding", "kernel"))

    other = dataclasses.replace(modality, adapt=adapt)
    with pytest.raises(InputError, match=r"makes other parameters anew \(got embedding/kernel\)"):
        finetune_with((other, architecture), [get_task(modality)], train="head")


def second_task(modality):
    """Other examples, fewer of them, other classes at each label; called `second`."""
    task = get_task(modality)

    def examples(split):
        source = task.examples("validation" if split == "train" else split)

        def load(index, rng):
            example = source.load(index, rng)
            return example | {"label": np.int32((example["label"] + 1) % 4),
                              "inputs": np.roll(example["inputs"], 1, axis=1)}

        return dataclasses.replace(source, load=load, content_hash="second",
                                   labels=lambda: (source.labels() + 1) % 4)

    return dataclasses.replace(task, name="second", examples=examples)


def test_one_model_serves_a_mixture(toy):
    tasks = [get_task(toy[0]), second_task(toy[0])]
    ft, _, result = finetune_with(toy, tasks, mixture="proportional", mixture_limit=40,
                                  eval_every=20, select="best")
    assert (ft.name, ft.train_source().num_examples) == ("mixture", 40 + 24)
    assert result.tasks.keys() == {"toy_task", "second"}
    names = {p.name for p in result.curve}
    assert {"train/loss", "validation/toy_task/accuracy", "validation/second/accuracy"} <= names
    for task in tasks:
        found = result.tasks[task.name]
        curve = {p.step: p.value for p in result.curve
                 if p.name == f"validation/{task.name}/accuracy"}
        assert curve.keys() == {20, 40, 50}
        assert curve[found.steps["test"]] == max(curve.values())
        assert found.scores["validation"].metrics["accuracy"] == max(curve.values())
        predictions = predict_all(ft.program, found.params, task, "test", 16)
        np.testing.assert_array_equal(found.scores["test"].per_example,
                                      predictions.argmax(axis=1) == task_labels(task, "test"))


def test_tasks_that_need_different_models_do_not_mix(toy):
    more = dataclasses.replace(second_task(toy[0]), options={"num_classes": 5})
    with pytest.raises(InputError, match=r"task 'second', options: num_classes is not that of task "
                                         r"'toy_task'.*got 5; expected 4.*mixture='single'"):
        finetune_with(toy, [get_task(toy[0]), more], mixture="proportional")


def scripted(task, values):
    """The task with the validation scores `values` one after another; notes what is read."""
    left, read = list(values), []

    def score(predictions, labels):
        value = left.pop(0) if len(labels) == 24 else 0.125
        return Scores({"accuracy": value}, np.full(len(labels), value))

    def examples(split):
        read.append(split)
        return task.examples(split)

    return dataclasses.replace(task, score=score, examples=examples), read


@pytest.mark.parametrize(("select", "values", "step"), [
    ("best", [0.2, 0.9, 0.4, 0.9, 0.1], 20), ("best", [0.1, 0.2, 0.3, 0.4, 0.5], 50),
    ("last", [0.9, 0.2, 0.3, 0.4, 0.1], 50)])
def test_the_best_on_validation_is_chosen_and_test_is_read_once_and_last(
    toy, select, values, step
):
    task, read = scripted(get_task(toy[0]), values)
    modality, architecture = toy
    shape = modality.presets["tiny"].shape
    config = dataclasses.replace(CONFIG, eval_every=10, select=select)
    ft = make_finetune(modality, architecture, shape, modality.options, [task], config)
    params = make_model(modality, architecture, shape, modality.options).init(jax.random.key(0))
    read.clear()
    result = finetune(ft, params, seed=0)
    assert result.tasks["toy_task"].steps == {"validation": step, "test": step}
    assert scores_of(result)["validation"].metrics == {"accuracy": values[step // 10 - 1]}
    first = read.index("test")
    assert set(read[first:]) == {"test"}
    assert read.count("validation") == 2 * 5  # predictions and labels of five checkpoints
    # The same params as of training that ends there, with the schedule of the whole.
    stopped = []

    def measure_at(asked_step, tree):
        if asked_step == step:
            stopped.append(jax.tree.map(np.array, tree))
        return {}

    adapted, _ = modality.adapt(params, ft.source_options, ft.target_options,
                                jax.random.fold_in(jax.random.key(0), 2))
    train(ft.program, task.examples("train"), seed=0, batch_size=16,
          run=RunOptions(eval_every=10), initial_params=adapted, measure=measure_at)
    assert_trees_equal(result.tasks["toy_task"].params, stopped[0])


def test_the_full_validation_split_is_scored_beside(toy):
    """Its halves are `validation` and `test`; its best step is its own."""
    task = get_task(toy[0])
    full = dataclasses.replace(
        task, splits=("train", "validation", "test", "validation_full"),
        examples=lambda s: task.examples("train" if s == "validation_full" else s))
    _, _, result = finetune_with(toy, [full], eval_every=10, select="best")
    _, _, plain = finetune_with(toy, [task], eval_every=10, select="best")
    found, without = result.tasks["toy_task"], plain.tasks["toy_task"]
    assert found.scores.keys() == {"validation", "validation_full", "test"}
    assert len(found.scores["validation_full"].per_example) == 60
    assert found.steps.keys() == found.scores.keys()
    assert without.scores["test"].metrics == found.scores["test"].metrics
    assert without.steps == {s: found.steps[s] for s in ("validation", "test")}


def test_greedy_scores_what_the_model_predicts(runs):
    ranked = dataclasses.replace(runs.ft.tasks[0], candidates=relabelled)
    params = runs.results[0].params
    greedy = predict_all(runs.ft.program, params, ranked, "test", 16, decode="greedy")
    plain = predict_all(runs.ft.program, params, runs.ft.tasks[0], "test", 16)
    np.testing.assert_array_equal(greedy, plain)
    ranks = predict_all(runs.ft.program, params, ranked, "test", 16, decode="rank")
    assert np.abs(ranks - greedy).max() > 1e-3


def test_greedy_needs_no_score(toy):
    def scoreless(shape, options):
        return dataclasses.replace(toy[1].make_model(shape, options), score=None)

    architecture = dataclasses.replace(toy[1], make_model=scoreless)
    ranked = get_task(toy[0], candidates=relabelled)
    ft = make(toy, ranked, dataclasses.replace(CONFIG, decode="greedy"), architecture)
    params = ft.program.init(0).params
    predictions = predict_all(ft.program, params, ranked, "test", 16, decode="greedy")
    assert predictions.shape == (41, 4)
    plain = predict_all(ft.program, params, get_task(toy[0]), "test", 16)
    np.testing.assert_array_equal(predictions, plain)
    with pytest.raises(NotApplicable, match="the model has no score"):
        predict_all(ft.program, params, ranked, "test", 16, decode="rank")


def test_greedy_is_refused_before_training_where_only_candidates_can_be_scored(toy):
    def decoder(shape, options):
        model = toy[1].make_model(shape, options)
        return dataclasses.replace(
            model, predict=lambda *a: model.predict(*a).argmax(axis=1, keepdims=True))

    architecture = dataclasses.replace(toy[1], make_model=decoder)
    config = dataclasses.replace(CONFIG, decode="greedy")
    task = get_task(toy[0], candidates=relabelled)
    with pytest.raises(InputError, match=r"got int32\[24, 1\].*fine_tune.decode='rank'"):
        make(toy, task, config, architecture)


def test_options_lie_over_the_tasks(toy):
    task = get_task(toy[0])
    config = dataclasses.replace(CONFIG, options={"compute_dtype": "bfloat16", "num_classes": 6})
    found = make(toy, task, config).target_options
    assert (found.compute_dtype, found.num_classes, found.dropout_rate) == ("bfloat16", 6, 0.1)
    with pytest.raises(InputError, match="compute_dtpe"):
        make(toy, task, dataclasses.replace(CONFIG, options={"compute_dtpe": "bfloat16"}))


def test_the_moving_average_is_what_is_scored(toy, runs):
    averaged = dataclasses.replace(ADAMW, ema_decay=0.95)
    ft, _, result = finetune_with(toy, [get_task(toy[0])], optimizer=averaged)
    plain = runs.results[0].params["head"]["kernel"]
    assert np.abs(result.params["head"]["kernel"] - plain).max() > 1e-4
    predictions = predict_all(ft.program, result.params, ft.tasks[0], "test", 16)
    np.testing.assert_array_equal(scores_of(result)["test"].per_example,
                                  predictions.argmax(axis=1) == np.arange(41) % 4)


# --- ends other than done -------------------------------------------------------------------------
# While training; before each batch of validation (2) and test (3).
@pytest.mark.parametrize("stop_after", [3, *range(50, 55)])
def test_preempted(runs, stop_after):
    asked = []

    def should_stop():
        asked.append(None)
        return len(asked) > stop_after

    result = finetune(runs.ft, runs.checkpoints[0], seed=0, should_stop=should_stop)
    assert (result.status, result.tasks) == ("preempted", {})
    assert len(asked) == stop_after + 1


def test_diverged_is_not_scored(runs):
    broken = jax.tree.map(lambda x: x * np.float32(np.nan), runs.checkpoints[0])
    result = finetune(runs.ft, broken, seed=0)
    assert (result.status, result.tasks) == ("diverged", {})
    assert result.curve[-1].value is None
    assert result.reinitialised == HEAD


def test_the_test_split_is_only_scored(toy, runs):
    """Other test data changes the test score and nothing else."""
    modality, _ = toy
    task = get_task(modality)
    other = dataclasses.replace(
        runs.ft, tasks=(dataclasses.replace(
            task, examples=lambda s: task.examples("train" if s == "test" else s)),))
    result = finetune(other, runs.checkpoints[0], seed=0)
    assert_trees_equal(result.params, runs.results[0].params)
    assert (scores_of(result)["validation"].metrics
            == scores_of(runs.results[0])["validation"].metrics)
    assert len(scores_of(result)["test"].per_example) == 60


# --- bad input ------------------------------------------------------------------------------------
def with_label(task, split, index, label):
    def examples(asked):
        source = task.examples(asked)
        if asked != split:
            return source
        labels = source.labels().copy()
        labels[index] = label
        return dataclasses.replace(source, labels=lambda: labels)

    return dataclasses.replace(task, examples=examples)


def make(toy, task, config=CONFIG, architecture=None):
    modality, toy_mlp = toy
    return make_finetune(modality, architecture or toy_mlp, modality.presets["tiny"].shape,
                         modality.options, [task], config)


def test_labels_are_checked_before_training(toy):
    task = get_task(toy[0])
    for split, index, label in (("train", 7, 4), ("validation", 0, -1), ("test", 40, 99)):
        with pytest.raises(InputError) as error:
            make(toy, with_label(task, split, index, label))
        assert str(error.value) == (f"task 'toy_task', {split}: label of example {index} is out of "
                                    f"range (got {label}; expected 0..3)")


def test_a_task_without_labels_is_named(toy):
    task = get_task(toy[0], examples=lambda split: Source(3, lambda i, rng: {}, "0"))
    with pytest.raises(InputError, match=r"task 'toy_task', train: its source has no labels"):
        task_labels(task, "train")


@pytest.mark.parametrize(("change", "message"), [
    ({"kinds": frozenset({"few_shot"})}, "does not serve fine-tuning (got few_shot)"),
    ({"options": {"num_clases": 4}}, "num_clases"),
])
def test_unfit_tasks_are_named(toy, change, message):
    with pytest.raises(InputError) as error:
        make(toy, get_task(toy[0], **change))
    assert message in str(error.value)
    assert "toy_task" in str(error.value)


def test_ranking_needs_a_score(toy):
    def make_scoreless(shape, options):
        return dataclasses.replace(toy[1].make_model(shape, options), score=None)

    architecture = dataclasses.replace(toy[1], make_model=make_scoreless)
    make(toy, get_task(toy[0]), architecture=architecture)
    with pytest.raises(NotApplicable, match="the model has no score"):
        make(toy, get_task(toy[0], candidates=relabelled), architecture=architecture)


def test_fewer_examples_than_a_batch_make_one_step(toy):
    config = dataclasses.replace(CONFIG, examples=3,
                                 optimizer=dataclasses.replace(ADAMW, warmup_steps=0))
    assert make(toy, get_task(toy[0]), config).program.total_steps == 1
    with pytest.raises(InputError, match="warmup_steps"):
        make(toy, get_task(toy[0]), dataclasses.replace(CONFIG, examples=3))


def test_seed_out_of_range(runs):
    with pytest.raises(InputError, match=r"seed is out of range \(got 2147483648"):
        finetune(runs.ft, runs.checkpoints[0], seed=2**31)
