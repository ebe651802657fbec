"""A command that runs a model starts anew with huge pages, once, where that is of use."""

import os
import subprocess
import sys

import pytest

from deepnarrow.cli import hugepages


@pytest.fixture
def restarted(monkeypatch, tmp_path):
    """What would be executed, on a Linux whose programs must ask for huge pages."""
    calls = []
    thp = tmp_path / "enabled"
    thp.write_text("always [madvise] never\n")
    monkeypatch.setattr(hugepages, "_THP", thp)
    monkeypatch.setattr(os, "confstr", lambda _: "glibc 2.36")
    monkeypatch.setattr(os, "execve", lambda *call: calls.append(call))
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    return calls


@pytest.mark.parametrize("command", ["study", "train", "check"])
def test_it_starts_the_same_program_with_the_same_arguments(command, restarted, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "-X", "dev", "/bin/deepnarrow", command, "a"])
    hugepages.restart_with_huge_pages([command, "a"])
    ((path, arguments, environment),) = restarted
    assert path == sys.executable
    assert arguments == [sys.executable, "-X", "dev", "/bin/deepnarrow", command, "a"]
    assert environment == {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def test_other_tunables_stay(restarted, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=0")
    hugepages.restart_with_huge_pages(["study"])
    assert restarted[0][2]["GLIBC_TUNABLES"] == "glibc.malloc.check=0:glibc.malloc.hugetlb=1"


@pytest.mark.parametrize("arguments", [[], ["--help"], ["shape", "study"], ["list"], ["pareto"]])
def test_commands_that_run_no_model_do_not_pay_for_it(arguments, restarted):
    hugepages.restart_with_huge_pages(arguments)
    assert not restarted


@pytest.mark.parametrize("tunables", ["glibc.malloc.hugetlb=1", "a=b:glibc.malloc.hugetlb=0"])
def test_it_is_done_once_and_the_user_has_the_last_word(tunables, restarted, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", tunables)
    hugepages.restart_with_huge_pages(["study"])
    assert not restarted


@pytest.mark.parametrize("libc", ["glibc 2.34", "musl 1.2", "", None])
def test_another_libc_is_left_alone(libc, restarted, monkeypatch):
    monkeypatch.setattr(os, "confstr", lambda _: libc)
    hugepages.restart_with_huge_pages(["study"])
    assert not restarted


@pytest.mark.parametrize("setting", ["[always] madvise never", "always madvise [never]", None])
def test_a_kernel_that_need_not_or_cannot_be_asked_is_left_alone(setting, restarted):
    if setting is None:
        hugepages._THP.unlink()
    else:
        hugepages._THP.write_text(setting)
    hugepages.restart_with_huge_pages(["study"])
    assert not restarted


@pytest.mark.skipif(not hugepages._wanted() and hugepages.HUGE not in os.environ.get(
    hugepages.TUNABLES, ""), reason="malloc cannot be asked for huge pages here")
def test_a_real_process_keeps_its_number_and_ends_after_one_restart():
    code = ("import os; from deepnarrow.cli.hugepages import restart_with_huge_pages as restart; "
            "print(os.getpid(), flush=True); restart(['study']); "
            "print(os.environ['GLIBC_TUNABLES'])")
    environment = {name: x for name, x in os.environ.items() if name != "GLIBC_TUNABLES"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True,
                          text=True, timeout=60, check=True)
    first, again, tunables = done.stdout.split()
    assert first == again
    assert tunables == "glibc.malloc.hugetlb=1"
