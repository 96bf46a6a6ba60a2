"use strict";
const DATA = JSON.parse(document.getElementById("data").textContent);
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const isDark = matchMedia("(prefers-color-scheme: dark)");

// --- figures ---------------------------------------------------------------------------------
function themed(figure) {
  const isNarrow = document.body.clientWidth < 600;
  const axis = (own) => ({
    gridcolor: css("--line"), zerolinecolor: css("--line"), linecolor: css("--line"), ...own,
    title: own.title ? { text: own.title, standoff: 8 } : undefined, automargin: true,
  });
  const keys = Object.keys(figure.layout).filter((key) => /^[xy]axis/.test(key));
  return {
    ...figure.layout, ...Object.fromEntries(keys.map((key) => [key, axis(figure.layout[key])])),
    height: figure.height, hovermode: "closest", hoverlabel: { namelength: -1 },
    margin: { l: isNarrow ? 44 : 60, r: 12, t: 10, b: 44 },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, sans-serif", size: isNarrow ? 11 : 12, color: css("--text") },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--dim"), activecolor: css("--accent") },
    legend: { orientation: "h", y: -52 / (figure.height - 90), yanchor: "top", ...figure.layout.legend },
  };
}
const drawn = DATA.figures.map((figure) => ({ figure, place: document.getElementById(figure.name) }));
const select = document.getElementById("aggregate");
const isShown = (trace) => !trace.meta || trace.meta === (select ? select.value : "mean");
const hasMouse = matchMedia("(hover: hover)").matches;
const CONFIG = { responsive: true, displaylogo: false, displayModeBar: hasMouse ? "hover" : false };
function draw() {
  for (const { figure, place } of drawn) {
    const data = figure.data.map((trace) => ({ ...trace, visible: isShown(trace) }));
    Plotly.react(place, data, themed(figure), CONFIG);
  }
}
draw();
isDark.addEventListener("change", draw);
if (select) select.addEventListener("change", draw);

// --- tables ----------------------------------------------------------------------------------
for (const box of document.querySelectorAll(".sortable")) {
  const body = box.querySelector("tbody"), rows = [...body.rows];
  const count = box.querySelector("output"), filter = box.querySelector("input");
  const heads = [...box.querySelectorAll("th")];
  heads.forEach((head, column) => head.firstChild.addEventListener("click", () => {
    const isDown = head.getAttribute("aria-sort") === "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", isDown ? "descending" : "ascending");
    const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const both = (a, b) => {
      if (key(a) === "" || key(b) === "") return (key(a) === "") - (key(b) === "");
      const numbers = [Number(key(a)), Number(key(b))];
      const order = numbers.some(Number.isNaN) ? key(a).localeCompare(key(b)) : numbers[0] - numbers[1];
      return isDown ? -order : order;
    };
    body.append(...rows.sort(both));
  }));
  const show = () => {
    const words = filter.value.toLowerCase().split(/\s+/);
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
    count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length}`;
  };
  filter.addEventListener("input", show);
  show();
}

// --- players ---------------------------------------------------------------------------------
const sketches = {
  "CartPole-v1"(line, box, [x, , theta]) {
    const y = 0.62, at = x / 2.4 * 0.42 * box.aspect;
    line([[-2.4, y], [2.4, y]].map(([edge, h]) => [edge / 2.4 * 0.45 * box.aspect, h]), 1, "--dim");
    line([[at - 0.1, y - 0.04], [at + 0.1, y - 0.04]], 22, "--text");
    line([[at, y - 0.06], [at + 0.5 * Math.sin(theta), y - 0.06 - 0.5 * Math.cos(theta)]], 8, "--accent");
  },
  "Acrobot-v1"(line, box, [a, b]) {
    const elbow = [0.22 * Math.sin(a), 0.5 + 0.22 * Math.cos(a)];
    const tip = [elbow[0] + 0.22 * Math.sin(a + b), elbow[1] + 0.22 * Math.cos(a + b)];
    line([[-0.45 * box.aspect, 0.28], [0.45 * box.aspect, 0.28]], 1, "--good");
    line([[0, 0.5], elbow], 8, "--text");
    line([elbow, tip], 8, "--accent");
  },
  "Pendulum-v1"(line, box, [theta], action) {
    const tip = [0.4 * Math.sin(theta), 0.5 - 0.4 * Math.cos(theta)];
    line([[0, 0.5], tip], 12, "--accent");
    line([[0, 0.95], [action / 2 * 0.4 * box.aspect, 0.95]], 6, "--dim");
  },
};
DATA.players.forEach((player, index) => {
  const box = document.getElementById(`player-${index}`), env = PPO.envs[player.env];
  const part = (name) => box.querySelector(`[data-part=${name}]`);
  const canvas = box.querySelector("canvas"), context = canvas.getContext("2d");
  const policies = player.policies.map(PPO.load), limit = player.limit;
  let number = player.first, state, steps, total, action, ended, wait, isPlaying = false, due = 0, last = 0;
  function begin() {
    state = env.start(PPO.uniform);
    steps = total = action = wait = 0;
    ended = false;
    paint();
  }
  function paint() {
    const ratio = devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
    if (canvas.width !== width * ratio) { canvas.width = width * ratio; canvas.height = height * ratio; }
    context.setTransform(height * ratio, 0, 0, height * ratio, canvas.width / 2, 0);
    context.clearRect(-width, 0, 2 * width, 1);
    const line = (points, pixels, color) => {
      context.beginPath();
      points.forEach(([x, y]) => context.lineTo(x, y));
      Object.assign(context, { lineWidth: pixels / height, strokeStyle: css(color), lineCap: "round" });
      context.stroke();
    };
    sketches[player.env](line, { aspect: width / height }, state, action);
    const end = ended ? (steps >= limit ? ": time limit" : ": ended") : "";
    part("facts").textContent = `step ${steps}, return ${total.toFixed(player.env === "Pendulum-v1" ? 1 : 0)}${end}`;
  }
  function advance() {
    if (ended) { if (++wait * env.seconds > 1) begin(); return; }
    action = policies[number](env.observe(state));
    const step = env.step(state, action);
    state = step.state;
    total += step.reward;
    steps++;
    ended = step.ended || steps >= limit;
  }
  function frame(now) {
    if (!isPlaying) return;
    due = Math.min(due + (now - last) / 1000 * Number(part("speed").value), 1);
    last = now;
    for (; due >= env.seconds; due -= env.seconds) advance();
    paint();
    requestAnimationFrame(frame);
  }
  function toggle(play) {
    if (play === isPlaying) return;
    isPlaying = play;
    part("play").textContent = play ? "Pause" : "Play";
    if (play) requestAnimationFrame((now) => { last = now; frame(now); });
  }
  function choose() {
    number = Number(part("policy").value);
    const { label, seed, final_return: end } = player.policies[number];
    part("label").textContent = `${label} (seed ${seed}, final return ${end.toLocaleString("en", { maximumFractionDigits: 1 })})`;
    begin();
  }
  part("policy").addEventListener("input", choose);
  part("play").addEventListener("click", () => toggle(!isPlaying));
  part("new").addEventListener("click", begin);
  addEventListener("resize", paint);
  isDark.addEventListener("change", paint);
  choose();
  const isCalm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  new IntersectionObserver(([entry]) => toggle(entry.isIntersecting && !isCalm)).observe(canvas);
});
document.documentElement.dataset.ready = "true";
