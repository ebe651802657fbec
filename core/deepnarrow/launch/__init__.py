"""Launchers: where the units of a study run.

    inline.py       one after another in the command's own process
    pool.py         what the others share: orders, attempts, retries, collecting
    local.py        processes of this machine, as many as its memory holds
    raycluster.py   tasks of a Ray cluster
    slurm.py        job arrays, by submitit

Units that do not run inline are run by `deepnarrow.worker`, one process each. What a process found
it leaves in `WORKDIR/outbox/`; the command alone writes to the store, which is the only truth: what
an engine believes about a unit decides nothing but whether it is asked to run it again.
"""
