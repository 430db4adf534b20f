"""The way back, drilled on live traffic: there, partly back, there, back, there, and back in an emergency."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from demo.processes import descendants
from demo.story import CANARY_USERS, MIGRATE, ROOT, Demo, Unfinished, beside, oracle_command
from oracle.crash import crash
from oracle.stores import connect

PARTIAL = ("ansible-playbook", "playbooks/hybrid.yml", "-e", "queue_share=25")
PLANNED = ("ansible-playbook", "playbooks/planned-rollback.yml", "-e", 'queue_run_reason="a drill"')
EMERGENCY = ("ansible-playbook", "playbooks/emergency-rollback.yml", "-e", 'queue_run_reason="a drill, RQ killed"')
ASSESS = ("ansible-playbook", "playbooks/assess.yml")


class Drill(Demo):
    """Six runs over the same tasks, and one verdict over all of them."""

    steps = 10
    # Slow enough that every way back meets running and waiting tasks, and RQ keeps scheduled ones nearly to the end.
    workers = ("--legacy", "4", "--rq", "8", "--rq-simple", "--work-ms", "100")
    delayed = (0.6, 200)
    kills = 0

    def there(self, number: int) -> None:
        """A forward migration."""
        self.say(f"{number}/{self.steps}  there: migrate.yml under traffic")
        self._playbook(MIGRATE)

    def partly_back(self, number: int) -> None:
        """The partial way back."""
        self.say(f"{number}/{self.steps}  partly back: a quarter of the users stays with RQ, both sides work")
        self._playbook(PARTIAL)

    def back(self, number: int) -> None:
        """The planned way back."""
        self.say(f"{number}/{self.steps}  back, as planned: everything RQ holds comes home")
        self._playbook(PLANNED)

    def emergency(self, number: int) -> None:
        """kill -9 of everything of RQ, the question, and the way back that does not wait for the dead."""
        self.kills = self._kill_all_of_rq()
        self.say(f"{number}/{self.steps}  kill -9: {self.kills} processes of RQ; and now: assess.yml")
        self._playbook(ASSESS)
        self.say("      the emergency rollback")
        self._playbook(EMERGENCY)

    def decide(self, number: int) -> None:
        """What was begun when its worker was killed waits for a word: here, that it may run again."""
        held = self._held()
        self.say(f"{number}/{self.steps}  {len(held)} tasks were begun when their workers died: released to run again")
        if held:
            released = "queue_holds_state=released queue_holds_to=source"
            ids = json.dumps({"queue_holds_ids": held, "queue_holds_reason": "the drill killed their workers"})
            self._playbook(("ansible-playbook", "playbooks/holds.yml", "-e", released, "-e", ids))
            self._playbook(("ansible-playbook", "playbooks/cleanup.yml", "-e", "queue_cleanup_stability_seconds=0"))

    def verdict(self) -> int:
        """The oracle's verdict over the whole sequence, and the times against the budgets."""
        judging = [
            *oracle_command("judge"), "--accepted", self.settings["SLUICE_LAB_ACCEPTED_FILE"],
            "--accepted", self.settings["SLUICE_LAB_PROBER_FILE"], "--seeded", str(self.seeded),
            "--redis-url", "env", "--canary-users", CANARY_USERS, "--wait", "30", "--kills", str(self.kills),
        ]  # fmt: skip
        judged = subprocess.run(
            judging, cwd=ROOT, env=self.environment, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        print()
        print("\n".join(beside(self._times(), ["oracle, over the whole sequence", *judged.stdout.splitlines()])))
        return judged.returncode

    # --- parts ---------------------------------------------------------------------------------------------------

    def _kill_all_of_rq(self) -> int:
        """Workers, their horses and their schedulers, all at once as a crash would; how many."""
        text = subprocess.run(
            ["supervisorctl", "-s", f"unix://{self.settings['SLUICE_LAB_SUPERVISOR_SOCKET']}", "status"],
            env=self.environment, capture_output=True, text=True, check=False,
        ).stdout  # fmt: skip
        workers = [int(pid) for pid in re.findall(r"^rqworkers:\S+\s+RUNNING\s+pid (\d+)", text, re.MULTILINE)]
        if not workers:
            raise Unfinished("no RQ worker runs that could be killed")
        family = [pid for worker in workers for pid in (*descendants(worker), worker)]
        return crash(family, Path(self.settings["SLUICE_LAB_EFFECTS_FILE"]), self._running)

    def _running(self, tasks: Sequence[str]) -> int:
        """How many of the tasks are running, by their rows."""
        connection = connect(self.settings["SLUICE_LAB_DB_READ_URL"])
        with connection, connection.cursor() as cursor:
            marks = ", ".join(["%s"] * len(tasks))
            cursor.execute(f"SELECT COUNT(*) FROM caption_tasks WHERE status = 'running' AND id IN ({marks})", tasks)
            ((number,),) = cursor.fetchall()
            return int(number)

    def _held(self) -> list[str]:
        connection = connect(self.settings["SLUICE_LAB_DB_READ_URL"])
        with connection, connection.cursor() as cursor:
            cursor.execute("SELECT task_id FROM sluice_task WHERE mark = 'held' ORDER BY task_id")
            return [str(row[0]) for row in cursor.fetchall()]

    def _times(self) -> list[str]:
        """What each way back took, phase by phase, from its report."""
        lines = ["Sluice, the two ways back"]
        for path in sorted(self.directory.rglob("captions-*.md"), key=lambda path: path.stat().st_mtime):
            text = path.read_text(encoding="utf-8").splitlines()
            kind = next((line for line in text if line.startswith("kind ")), "")
            if not kind:
                continue
            first = next(number for number, line in enumerate(text) if line.startswith("phase         reached"))
            text = text[: text.index("```", first)]
            table = [line for line in text[first:] if re.match(r"\S+ *\S* +\d\d:\d\d:\d\d|phase", line)]
            lines += ["", kind, *table]
        return lines


def perform(drill: Drill, end_lab: Sequence[str]) -> int:
    """All steps; whatever happens, what was started has ended afterwards."""
    try:
        drill.lab()
        drill.backlog()
        traffic = drill.traffic()
        drill.there(4)
        drill.partly_back(5)
        drill.there(6)
        drill.back(7)
        drill.there(8)
        drill.emergency(9)
        drill.decide(10)
        drill.end_traffic(traffic)
        return drill.verdict()
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        drill.children.end()
        subprocess.run(end_lab, cwd=ROOT, env=drill.environment, check=True)
