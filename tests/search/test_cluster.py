from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vqtune.errors import InputError
from vqtune.search.cluster import cluster, fitting, remove_dead_sessions, session_root


@pytest.mark.parametrize(
    ("cpus", "gpus", "limit", "expected"),
    [
        (1.0, None, None, (8, 0.0)),
        (3.0, None, None, (2, 0.0)),
        (1.0, None, 3, (3, 0.0)),
        (0.1, None, None, (80, 0.0)),
        (1.0, 0.0, 100, (8, 0.0)),
    ],
)
def test_as_many_trials_as_fit(cpus: float, gpus: float | None, limit: int | None, expected: tuple[int, float]) -> None:
    assert fitting(cpus, gpus, {"CPU": 8.0}, limit) == expected


@pytest.mark.parametrize(("gpus", "expected"), [(None, (2, 1.0)), (0.25, (8, 0.25)), (2.0, (1, 2.0)), (0.0, (8, 0.0))])
def test_gpus_decide_where_there_are_some(gpus: float | None, expected: tuple[int, float]) -> None:
    assert fitting(1.0, gpus, {"CPU": 8.0, "GPU": 2.0}, None) == expected


def test_more_than_there_is_gets_one_line() -> None:
    with pytest.raises(InputError, match=r"^resources\.cpus_per_trial=9: there are 8 CPUs; ask for at most that many$"):
        fitting(9.0, None, {"CPU": 8.0}, None)
    with pytest.raises(InputError, match=r"^resources\.gpus_per_trial=1: there are 0 GPUs"):
        fitting(1.0, 1.0, {"CPU": 8.0}, None)


def session(root: Path, name: str, mark: str | None) -> Path:
    folder = root / f"session_{name}"
    (folder / "logs").mkdir(parents=True)
    if mark is not None:
        (folder / "vqtune.pid").write_text(mark)
    return folder


def test_only_our_own_dead_sessions_are_removed_and_the_newest_stays(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    own_start = Path(f"/proc/{os.getpid()}/stat").read_text().rsplit(")", 1)[1].split()[19]
    kept = [
        session(tmp_path, "2026-01-02_alive", f"{os.getpid()} {own_start}"),
        session(tmp_path, "2026-01-01_of-somebody-else", None),
        session(tmp_path, "2026-01-09_newest", f"{gone.pid} 1"),
        session(tmp_path, "2026-01-03_unreadable", "?"),
    ]
    removed = [
        session(tmp_path, "2026-01-05_dead", f"{gone.pid} 1"),
        session(tmp_path, "2026-01-06_number-given-away-again", f"{os.getpid()} 1"),
    ]
    remove_dead_sessions(tmp_path)
    assert all(folder.exists() for folder in kept)
    assert not any(folder.exists() for folder in removed)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_a_cluster_that_does_not_answer_gets_one_line(address: str) -> None:
    """In a process of its own: this one may be connected already."""
    code = (
        "from vqtune.search.cluster import cluster\n"
        "from vqtune.errors import InputError\n"
        f"try:\n    cluster({address!r}, dashboard=False).__enter__()\n"
        "except InputError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith(f"--address {address}: no Ray cluster answers")
    assert done.stdout.count("\n") == 1


def test_a_cluster_starts_with_tune_at_hand_and_without_processes_that_no_trial_would_use() -> None:
    code = (
        "import sys\n"
        "from vqtune.search.cluster import cluster\n"
        "with cluster(None, dashboard=False):\n"
        "    import psutil\n"
        "    print('ray.tune' in sys.modules)\n"
        "    started = psutil.Process().children(recursive=True)\n"
        "    lines = [' '.join(p.cmdline()) for p in started if p.name() != 'raylet']\n"
        "    print(sum('default_worker.py' in line or 'ray::IDLE' in line for line in lines), len(lines) >= 3)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["True", "0", "True"], done.stderr


@pytest.mark.usefixtures("shared_ray")
def test_every_port_is_on_loopback_and_the_token_is_private() -> None:
    import psutil  # Ray brings it
    import ray

    with cluster(None, dashboard=False) as url:
        assert url.result(timeout=0) is None  # joined, not started again
    processes = [psutil.Process()]
    processes += processes[0].children(recursive=True)
    listening = {
        (process.name(), connection.laddr.ip.removeprefix("::ffff:"))
        for process in processes
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert len(listening) >= 3
    assert {ip for _, ip in listening} <= {"127.0.0.1", "::1"}
    assert (Path.home() / ".ray" / "auth_token").stat().st_mode & 0o077 == 0
    sessions = Path(ray._private.worker._global_node.get_session_dir_path()).parent
    assert sessions == session_root()
    assert sessions.parent.stat().st_mode & 0o077 == 0  # Ray itself opens what lies in it
