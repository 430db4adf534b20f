// What /admin tells, every two seconds. Everything that comes from outside is put in as text, never as markup.
"use strict";

const EVERY_MS = 2000;
const SYSTEMS = ["db", "held", "rq"];
const $ = (id) => document.getElementById(id);

function token() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    sessionStorage.setItem("token", given);
    history.replaceState(null, "", location.pathname);
  }
  return sessionStorage.getItem("token") ?? "";
}

class Refused extends Error {}

async function ask(path, method = "GET") {
  const answer = await fetch(`/admin/${path}`, { method, headers: { Authorization: `Bearer ${token()}` }, cache: "no-store" });
  const body = await answer.json();
  if (answer.status === 401) throw new Refused("this token is nobody's");
  if (!answer.ok) throw new Error(body.error ?? `status ${answer.status}`);
  return body;
}

function element(name, text = "", classes = "") {
  const made = document.createElement(name);
  made.textContent = text;
  made.className = classes;
  return made;
}

function button(text, path) {
  const made = element("button", text);
  made.addEventListener("click", async () => {
    made.disabled = true;
    try {
      await ask(path, "POST");
      await look();
    } catch (error) {
      say(`${text}: ${error.message}`, true);
    }
  });
  return made;
}

function rows(id, lines, nothing) {
  const made = lines.map((cells) => {
    const row = document.createElement("tr");
    for (const cell of cells) {
      const td = cell instanceof Node ? element("td") : element("td", cell?.text ?? cell ?? "", cell?.classes ?? "");
      if (cell instanceof Node) td.append(cell);
      row.append(td);
    }
    return row;
  });
  if (made.length === 0) {
    const row = document.createElement("tr");
    row.append(element("td", nothing));
    made.push(row);
  }
  $(id).replaceChildren(...made);
}

const number = (value) => ({ text: String(value), classes: "n" });

function seconds(value) {
  if (!value) return "";
  return value < 120 ? `${value.toFixed(1)} s` : `${Math.round(value / 60)} min`;
}

function say(text, bad = false) {
  $("news").textContent = text;
  $("news").className = bad ? "bad" : "";
}

function showWhere(stats, maintenance) {
  const open = Object.fromEntries(SYSTEMS.map((system) => [system, 0]));
  for (const group of stats.groups) {
    if (group.status === "queued" || group.status === "running") open[group.custody] += group.tasks;
  }
  const all = SYSTEMS.reduce((sum, system) => sum + open[system], 0);
  const words = { db: "database", held: "being moved", rq: "RQ" };
  $("bar").replaceChildren(...SYSTEMS.filter((system) => open[system]).map((system) => {
    const part = element("span", `${words[system]} ${open[system]}`, system);
    part.style.width = `${(100 * open[system]) / all}%`;
    return part;
  }));
  $("bar").setAttribute("aria-label", SYSTEMS.map((system) => `${words[system]} ${open[system]}`).join(", "));
  const { route, polling, intake } = stats;
  const lines = [
    ["unfinished", `${all}: ${open.db} in the database, ${open.held} being moved, ${open.rq} in RQ (${stats.outbox} of them without a job yet)`],
    ["ended", ["completed", "failed", "cancelled"].map((status) => `${stats.by_status[status] ?? 0} ${status}`).join(", ")],
    ["new tasks", `${route.effective_share} % of users to RQ` + (route.note ? `; ${route.note}` : "")],
    ["pollers", polling.effective ? "may claim" : "may not claim"],
    ["intake", intake.intake === "open" ? "open" : `paused for ${intake.seconds_left} s more: ${intake.reason}`],
  ];
  if (maintenance.planned?.starts_in_seconds) {
    const { reason, starts_in_seconds: wait, left_seconds: end } = maintenance.planned;
    lines.push(["planned", `intake paused in ${seconds(wait)} for ${seconds(end - wait)}: ${reason}`]);
  }
  $("switches").replaceChildren(...lines.flatMap(([name, text]) => [
    element("dt", name), element("dd", text, name === "intake" && intake.intake !== "open" ? "bad" : ""),
  ]));
}

function showQueues(answer) {
  rows("queues", answer.queues.flatMap(({ queue, paused }) => {
    const waiting = answer.waiting.filter((line) => line.queue === queue);
    const act = button(paused ? "resume" : "pause", `queues/${encodeURIComponent(queue)}/${paused ? "resume" : "pause"}`);
    const name = paused ? { text: `${queue} (paused)`, classes: "bad" } : queue;
    if (waiting.length === 0) return [[name, "", number(0), number(0), number(0), "", act]];
    return waiting.map((line, at) => [
      at ? "" : name, line.system, number(line.ready), number(line.delayed), number(line.running),
      number(seconds(line.oldest_ready_seconds)), at ? "" : act,
    ]);
  }), "there are no queues");
}

function showWorkers(answer) {
  rows("workers", answer.workers.map((worker) => [
    worker.name, worker.system, worker.state ?? "", { text: worker.task ?? "", classes: "id" },
    number(worker.completed ?? ""), worker.last_heartbeat?.slice(11, 19) ?? "",
  ]), answer.redis ? `Redis ${answer.redis}` : "nobody works");
}

function showTasks(answer) {
  rows("tasks", answer.tasks.map((task) => {
    const path = `tasks/${encodeURIComponent(task.id)}`;
    const act = task.status === "queued" ? button("cancel", `${path}/cancel`)
      : ["failed", "cancelled"].includes(task.status) ? button("requeue", `${path}/requeue`) : "";
    return [
      { text: task.id, classes: "id" }, task.custody, task.priority, task.status,
      number(`${task.attempts}/${task.max_attempts}`), number(`${task.progress} %`), task.error ?? task.progress_note ?? "", act,
    ];
  }), "none");
}

async function look() {
  const wanted = new URLSearchParams([...new FormData($("filter"))].filter(([, value]) => value));
  const [stats, maintenance, queues, workers, tasks] = await Promise.all(
    [ask("stats"), ask("maintenance"), ask("queues"), ask("workers"), ask(`tasks?limit=50&${wanted}`)]);
  showWhere(stats, maintenance);
  showQueues(queues);
  showWorkers(workers);
  showTasks(tasks);
  document.querySelector("main").hidden = false;
  $("enter").hidden = true;
  say(`as of ${new Date().toLocaleTimeString()}`);
}

async function live() {
  try {
    await look();
  } catch (error) {
    if (error instanceof Refused) {
      $("enter").hidden = false;
      document.querySelector("main").hidden = true;
      say(token() ? error.message : "enter a token with the role view or more", Boolean(token()));
      return;
    }
    say(`no news: ${error.message}`, true);
  }
  setTimeout(live, EVERY_MS);
}

$("enter").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", $("token").value.trim());
  live();
});
$("filter").addEventListener("change", look);
live();
