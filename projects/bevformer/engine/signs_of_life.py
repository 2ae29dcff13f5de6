"""What the processes of a run tell each other outside of collectives: that they live, and why one ended."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any, Callable, Sequence

import torch.distributed as dist

_PERIOD_S = 1.0  # between two signs of life
_ANSWER_S = 5.0  # that the store may take to answer
_GRACE_S = 10.0  # for an error of the main thread, after another rank has ended


class LostRankError(RuntimeError):
    """Another process of the run ended or does not answer."""


class SignsOfLife:
    """A thread that writes signs of life into a store, and watches those of the next rank.

    Only this thread uses the store, so that the others never block in it. A collective of NCCL does not
    notice that another process is gone; the thread does, and calls `end`.

    Args:
        store: of torch.distributed, with a connection of its own and keys that no other run uses.
        rank, world_size: of this process group.
        timeout_s: how long another process may give no sign of life, or stay where it is within an iteration.
        end: called from the thread if the main thread does not end by itself.
        on_sign: called from the thread with the description of each new sign.
        period_s: seconds between two signs.
    """

    def __init__(
        self,
        store: Any,
        rank: int,
        world_size: int,
        timeout_s: float,
        end: Callable[[], None] = lambda: None,
        on_sign: Callable[[str], None] = lambda text: None,
        period_s: float = _PERIOD_S,
    ) -> None:
        self._store, self.rank, self._world_size = store, rank, world_size
        self._timeout_s, self._period_s = timeout_s, period_s
        self._end, self._on_sign = end, on_sign
        self._place = {"host": socket.gethostname(), "pid": os.getpid()}
        self._doing, self._since, self._bounded, self._waits = "the start", 0.0, False, False
        self._error: str | None = None
        self._claim = ""  # key of the error, which the first rank to name it reports
        self.reports = True  # whether this rank is that one
        self._meetings, self._beat = 0, 0
        # Key, what this process adds to it, and how many arrived.
        self._meeting: list[Any] | None = None
        self._stops = 0  # 1 for a request to stop that the store does not have yet
        self.is_stopped = False  # whether some process asked all to stop
        self._signs: dict[int, dict] = {}
        self._seen_at: dict[int, float] = {}
        self._lived_s = 0.0  # a clock that stands still while this process is stopped
        self._someone_ended_at: float | None = None
        self._all = self._stopping = False
        self._is_ending = threading.Lock()
        self._rounds = 0
        self._is_gone = False  # the store
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._live, daemon=True, name="signs of life")
        self._thread.start()

    def wait_for_sign(self) -> None:
        """Wait for the first sign of life of this process and of the next."""
        self._answers(self._timeout_s)

    # What the main thread says.

    def note(self, doing: str, bounded: bool = False) -> None:
        """What this process does from now on; `bounded`: it takes less than the time-out."""
        self._doing, self._bounded, self._waits = doing, bounded, False
        self._since = self._lived_s

    def note_wait(self, waits: bool) -> None:
        """Whether this process waits for the others in a collective."""
        self._waits = waits

    def meet(self, arrived: bool, needed: int) -> None:
        """Wait until `needed` processes have arrived, as long as all of them live.

        A collective's time-out would end a run in which one process has more to do than the others. To be
        called by all ranks in the same order.

        Args:
            arrived: whether this process is one of those that are waited for.
            needed: how many of them there are.

        Raises:
            LostRankError: another process ended or gives no sign of life.
        """
        self._meetings += 1
        meeting = self._meeting = [f"meeting {self._meetings}", int(arrived), 0]
        self._waits, pause_s = True, 0.002
        while meeting[2] < needed:
            if self._someone_ended_at is not None or not self._answers(self._timeout_s):
                raise LostRankError("another process does not answer")
            self._wake.set()
            time.sleep(pause_s)
            pause_s = min(1.5 * pause_s, self._period_s)
        self._waits = False

    def stop_all(self) -> None:
        """Ask all processes to stop what they do; `is_stopped` is true on each within about a second."""
        self._stops, self.is_stopped = 1, True
        self._wake.set()

    def finish(self, error: str, claim: str | None = None) -> bool:
        """Tell the others why this process ends.

        Args:
            error: one line.
            claim: what several ranks say alike; by default the error itself. An empty error is that of
                another rank.

        Returns:
            Whether this process is the first to report it.
        """
        self._error = error
        self._claim = hashlib.md5((claim or error).encode()).hexdigest()
        self._exchange_now()
        return self.reports

    def leave(self) -> None:
        """Say that this process gives no more signs, and end the thread."""
        if self._error is None:
            self._error = ""
            self._exchange_now()
        self._stopping = True
        self._wake.set()
        self._thread.join(0.1 if self._is_gone else 2)

    def claim_end(self) -> bool:
        """Whether the caller is the first of the two threads that wants to end the program."""
        return self._is_ending.acquire(blocking=False)

    def reason(self) -> str:
        """Which other ranks are why a collective failed, as far as their signs of life tell."""
        self._all = True
        if not self._exchange_now():
            return (
                "the store of the process group does not answer: rank 0, or the torchrun of its host, "
                "was killed or stopped, or its host or network is down"
            )
        others = [rank for rank in range(self._world_size) if rank != self.rank]
        found = [self._cause(rank, silent=False) for rank in others]
        if not any(found):
            before = {rank: self._signs[rank]["beat"] for rank in others}
            time.sleep(2.5 * self._period_s)
            self._exchange_now()
            silent = {rank for rank in others if self._signs[rank]["beat"] == before[rank]}
            found = [self._cause(rank, rank in silent) for rank in others]
        causes = [cause for cause in found if cause] or [self._late(rank) for rank in others]
        causes = [cause for cause in causes if cause]
        if len(causes) > 4:
            causes[3:] = [f"and {len(causes) - 3} other ranks"]
        if not causes and all(self._signs[rank]["error"] == "" for rank in others):
            stays_s = self._lived_s - self._since
            return f"the other ranks gave up: this one is at {self._doing} for {stays_s:.0f} s"
        return (
            "; ".join(causes) or "a collective failed although all ranks live: is the network up?"
        )

    # What the signs of another rank mean.

    def _name(self, rank: int) -> str:
        sign = self._signs[rank]
        return f"rank {rank} (host {sign['host']}, pid {sign['pid']})"

    def _cause(self, rank: int, silent: bool) -> str | None:
        sign = self._signs[rank]
        if sign["error"] is not None:
            return None if sign["error"] == "" else f"{self._name(rank)} ended: {sign['error']}"
        last = f"its last sign of life was at {sign['doing']}"
        state = _state(sign["pid"]) if sign["host"] == self._place["host"] else "?"
        if state in ("", "Z", "X"):
            return (
                f"{self._name(rank)} was killed (SIGKILL) or crashed, {last}: if nobody killed it, its host was "
                "probably out of memory (dmesg names the process)"
            )
        if state in ("T", "t"):
            return f"{self._name(rank)} is stopped (SIGSTOP or a debugger), {last}"
        if silent:
            silent_s = self._lived_s - self._seen_at[rank]
            return (
                f"{self._name(rank)} gives no sign of life for {silent_s:.0f} s, {last}: it was killed "
                "or stopped, or its host or network is down"
            )
        return None

    def _late(self, rank: int) -> str | None:
        sign = self._signs[rank]
        if sign["waits"] or sign["error"] is not None:
            return None
        return (
            f"{self._name(rank)} lives, but is at {sign['doing']} for {sign['for_s']:.0f} s while others "
            "wait: if that may take so long, raise dist_params.timeout_minutes"
        )

    # The thread.

    def _live(self) -> None:
        last = time.monotonic()
        try:
            while not self._stopping:
                now = time.monotonic()
                self._lived_s += min(now - last, 2 * self._period_s)
                last = now
                self._exchange()
                self._rounds += 1
                if self._must_end() and self.claim_end():
                    self._end()
                self._wake.wait(self._period_s)
                self._wake.clear()
        except RuntimeError:
            self._is_gone = True
            if self._must_end(gone=True) and self.claim_end():
                self._end()

    def _exchange(self) -> None:
        self._beat += 1
        sign = {
            **self._place, "beat": self._beat, "doing": self._doing, "bounded": self._bounded,
            "waits": self._waits, "for_s": self._lived_s - self._since, "error": self._error,
        }  # fmt: skip
        self._store.set(f"rank {self.rank}", json.dumps(sign))
        self._on_sign(self._doing)
        if self._claim:
            self.reports = self._store.add(f"error {self._claim}", 1) == 1
            self._claim = ""
            self._store.add("ended", 1)
        meeting = self._meeting
        if meeting is not None:
            arrives, meeting[1] = meeting[1], 0
            meeting[2] = self._store.add(meeting[0], arrives)
        stops, self._stops = self._stops, 0
        if self._store.add("stops", stops):
            self.is_stopped = True
        if self._store.add("ended", 0) and self._someone_ended_at is None:
            self._someone_ended_at = self._lived_s
        wanted = range(self._world_size) if self._all else [(self.rank + 1) % self._world_size]
        for rank in wanted:
            sign = json.loads(self._store.get(f"rank {rank}").decode())
            if rank not in self._signs or self._signs[rank]["beat"] != sign["beat"]:
                self._seen_at[rank] = self._lived_s
            self._signs[rank] = sign

    def _must_end(self, gone: bool = False) -> bool:
        """Whether the main thread had its time to notice that another process is gone."""
        if self._stopping or self._error is not None:
            return False
        if gone:
            time.sleep(self._timeout_s)
            return not self._stopping and self._error is None
        following = (self.rank + 1) % self._world_size
        sign = self._signs[following]
        silent_s = self._lived_s - self._seen_at[following]
        stays = sign["bounded"] and not sign["waits"] and sign["for_s"] > self._timeout_s
        if sign["error"] is None and (silent_s > self._timeout_s or stays):
            return True
        ended_at = self._someone_ended_at
        return ended_at is not None and self._lived_s - ended_at > _GRACE_S

    def _exchange_now(self) -> bool:
        """Let the thread read and write; returns whether the store answered."""
        if self._is_gone:
            return False
        if threading.current_thread() is self._thread:
            self._exchange()
            return True
        self._is_gone = not self._answers(_ANSWER_S, rounds=2)  # one may be under way
        return not self._is_gone

    def _answers(self, limit_s: float, rounds: int = 1) -> bool:
        until, wanted = time.monotonic() + limit_s, self._rounds + rounds
        while self._rounds < wanted:
            if self._is_gone or time.monotonic() > until:
                return False
            self._wake.set()
            time.sleep(0.005)
        return True


def _state(pid: int) -> str:
    """Letter of the state of a process of this host, "" where it is gone, "?" where that is unknown."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "" if Path("/proc/self/stat").exists() else "?"
    except (OSError, IndexError):
        return "?"


def connect(
    address: Sequence[Any],
    prefix: str,
    rank: int,
    world_size: int,
    timeout_s: float,
    **options: Any,
) -> SignsOfLife:
    """Signs of life in the store of a process group.

    Args:
        address: host and port of the store.
        prefix: of the keys.
        rank, world_size, timeout_s, options: see `SignsOfLife`.
    """
    limit = datetime.timedelta(seconds=max(timeout_s, 30))
    store = dist.TCPStore(*address, world_size, False, limit, wait_for_workers=False)
    signs = SignsOfLife(dist.PrefixStore(prefix, store), rank, world_size, timeout_s, **options)
    signs.wait_for_sign()
    return signs
