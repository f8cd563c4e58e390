"use strict";
// The page of fgrpo.export_html: the kit's rewards and credit methods once more (fgrpo/rewards.py, fgrpo/credit.py; the
// tests compare the two), what is drawn, and how candidates are moved. Texts reach the page as text nodes only.

const DATA = JSON.parse(document.getElementById("data").textContent), RUN = DATA.run;
const range = (n) => [...Array(n).keys()];
const sum = (xs) => xs.reduce((a, b) => a + b, 0);
const mean = (xs) => sum(xs) / xs.length;

// --- rewards of one rollout ---------------------------------------------------------------------------------------------

const WORTH = { recall: (n, m) => 1 / m, precision: (n) => 1 / n, f1: (n, m) => 2 / (n + m) };  // of a hit: n listed, m relevant

function score({ slate, rank, error }, gains, reward, k) {
  const hit = slate.map((i) => (gains[i] > 0 ? 1 : 0)), n = slate.length, hits = sum(hit);
  const relevant = Math.max(1, gains.filter((gain) => gain > 0).length);
  const worth = (length) => WORTH[reward](Math.max(1, length), relevant);
  const ideal = sum([...gains].sort((a, b) => b - a).slice(0, k).map((gain, i) => gain / Math.log2(i + 2)));
  const places = rank.map((c, i) => gains[c] / Math.log2(i + 2) / Math.max(1e-6, ideal));  // terms of NDCG@k
  const shapley = hit.map((h) => {
    const share = (hits - h) / Math.max(1, n - 1);  // of hits among the others
    return mean(range(n).map((s) => worth(s + 1) * (share * s + h) - worth(s) * share * s));
  });
  return {
    slate: hits * worth(n), rank: sum(places), places, shapley,
    items: hit.map((h) => hits * worth(n) - (hits - h) * worth(n - 1)),  // leave one out
    slateFormat: error && !n ? -RUN.penalty : 0, rankFormat: error && n ? -RUN.penalty : 0,
  };
}

// --- credit: for each rollout, the advantage of the token at a place of either phase -------------------------------------

const alike = (xs) => xs.every((x) => Math.fround(x) === Math.fround(xs[0]));  // the kit compares 32-bit numbers
const spread = (xs) => Math.sqrt(sum(xs.map((x) => (x - mean(xs)) ** 2)) / (xs.length - 1)) + 1e-4;

function advantage(xs, std, spreadOf = xs) {
  if (alike(xs)) return xs.map(() => 0);
  const middle = mean(xs), unit = std ? spread(spreadOf) : 1;
  return xs.map((x) => (x - middle) / unit);
}

function credit(method, r, rollouts, rankings, lam, std) {
  const G = r.length, of = (name) => r.map((x) => x[name]);
  const S = of("slate"), SF = of("slateFormat"), R = of("rank"), RF = of("rankFormat");
  const paid = R.map((x, g) => lam * x + RF[g]), earned = R.map((x, g) => x + RF[g]);
  const total = S.map((x, g) => x + SF[g] + paid[g]), covered = S.map((x, g) => x + SF[g]);
  const joint = advantage(total, std), own = advantage(paid, std, earned), unit = std ? spread(earned) : 1;
  const byPhase = (slate, rank) => range(G).map((g) => ({ slate: () => slate[g], rank: () => rank[g] }));
  const byItem = (values) => {
    const centred = (lists, by) => {
      const means = range(Math.max(...lists.map((x) => x.length))).map((p) => mean(lists.map((x) => x[p] ?? 0)));
      return lists.map((x) => (p) => ((x[p] ?? 0) - (means[p] ?? 0)) / by);
    };
    const slate = centred(alike(S) ? r.map(() => []) : of(values), std ? spread(S) : 1);
    const toGo = of("places").map((x) => x.map((_, p) => sum(x.slice(p))));
    const rank = centred(alike(R) ? r.map(() => []) : toGo, std ? spread(R) : 1);
    const slateForm = advantage(SF, std), rankForm = advantage(RF, std);
    return range(G).map((g) => ({ slate: (p) => slate[g](p) + slateForm[g], rank: (p) => lam * rank[g](p) + rankForm[g] }));
  };
  switch (method) {
    case "grpo": return byPhase(joint, joint);
    case "rloo": return byPhase(...Array(2).fill(joint.map((a) => (a * G) / (G - 1))));
    case "fgrpo": return byPhase(advantage(covered, std), own);
    case "reward_to_go": return byPhase(joint, own);
    case "gdpo": {
      const rank = advantage(earned, true), both = advantage(covered, true).map((a, g) => a + lam * rank[g]);
      const written = both.filter((_, g) => tokensOf(rollouts[g]).length);
      const batch = Math.sqrt(sum(written.map((a) => a * a)) / (G - 1)) + 1e-4, x = both.map((a) => a / batch);
      return byPhase(x, x);
    }
    case "anchor": {
      const key = rollouts.map((x) => [...x.slate].sort((a, b) => a - b).join());
      return byPhase(joint, paid.map((x, g) => {
        const others = range(G).filter((h) => h !== g), same = others.filter((h) => key[h] === key[g]);
        return ((x - mean((same.length ? same : others).map((h) => paid[h]))) * (1 - 1 / G)) / unit;
      }));
    }
    case "control": {
      const slate = advantage(S, false), rank = advantage(paid, false), kept = 1 - 1 / G;
      const squares = sum(slate.map((a) => a * a)) + 0.1, slope = sum(slate.map((a, g) => a * rank[g])) / squares;
      return byPhase(joint, rank.map((a, g) => ((a - slope * slate[g]) * kept) / (kept - slate[g] ** 2 / squares) / unit));
    }
    case "nested": {
      const K = rankings, M = G / K, of = (xs, m) => xs.slice(m * K, (m + 1) * K);
      const slate = advantage(range(M).map((m) => mean(of(total, m))), std).map((a) => (a * M) / (M - 1));
      const rank = range(M).flatMap((m) => advantage(of(paid, m), std).map((a) => (a * K) / (K - 1)));
      return byPhase(range(G).map((g) => slate[Math.floor(g / K)]), rank);
    }
    case "item": return byItem("items");
    case "shapley": return byItem("shapley");
  }
}

// --- state --------------------------------------------------------------------------------------------------------------

const LANES = ["pool", "slate", "rank"], LANE_NAMES = { pool: "pool", slate: "slate", rank: "ranking" };
const copies = DATA.groups.map((group) => group.rollouts.map((x) => ({ ...x })));  // the rollouts as they were moved
const state = { group: 0, rollout: 0, upper: "grpo", lower: "fgrpo", reward: RUN.reward, lam: RUN.lam, std: RUN.std, count: 0 };
const group = () => DATA.groups[state.group], rollouts = () => copies[state.group];
const room = (g = group()) => {  // as in fgrpo.runs.trace.credit_of: a list that was read is never too long
  const longest = (name) => Math.max(...g.rollouts.map((x) => x[name].length)), pool = g.titles.length;
  const rank = Math.max(1, longest("rank"), Math.min(RUN.rankSize, pool));
  return { rank, slate: Math.max(longest("slate"), rank, Math.min(RUN.slateSize, pool)) };
};
const step = () => (group().rollouts.length >= 2 * group().rankings ? group().rankings : 1);  // of the slider for G
const methods = () => Object.keys(DATA.methods).filter((m) => m !== "nested" || step() > 1);

function tokensOf({ slate, rank, edited, texts, items, phases }) {  // of an edited rollout: one token per candidate
  if (!edited) return texts.map((text, t) => ({ text, item: items[t], phase: phases[t] === 1 ? "slate" : "rank" }));
  const token = (phase) => (item) => (typeof item === "string" ? { text: item, item: -1, phase } : { text: "", item, phase });
  const end = texts.at(-1) === "<eos>" ? ["<eos>"] : [];
  return [...["<SLATE>", ...slate, "</SLATE>"].map(token("slate")), ...["<RANK>", ...rank, "</RANK>", ...end].map(token("rank"))];
}

function scores(index = state.group) {
  const g = DATA.groups[index];
  return copies[index].map((x) => score(x, g.gains, state.reward, room(g).rank));
}

function advantages(method, index = state.group, count = state.count) {  // for each rollout that counts, of every token
  const counted = copies[index].slice(0, count), g = DATA.groups[index];
  const found = credit(method, scores(index).slice(0, count), counted, g.rankings, state.lam, state.std);
  return counted.map((rollout, n) => {
    const place = { slate: 0, rank: 0 };  // of a token: how many candidates of its phase come before it
    return tokensOf(rollout).map(({ item, phase }) => {
      const value = RUN.learn === "both" || RUN.learn === phase ? found[n][phase](place[phase]) : 0;
      if (item >= 0) place[phase] += 1;
      return value;
    });
  });
}

const opposite = (a, b) => a * b < 0 && Math.min(Math.abs(a), Math.abs(b)) > 1e-6;

/** The token on which two methods differ most in sign, and how many do; `wanted` (phase, a, b) leaves some out. */
function clash(index, one, other, wanted = () => true) {
  let best = null, count = 0;
  one.forEach((row, g) => tokensOf(copies[index][g]).forEach(({ phase }, t) => {
    const a = row[t], b = other[g][t], by = Math.min(Math.abs(a), Math.abs(b));
    if (!opposite(a, b) || !wanted(phase, a, b)) return;
    count += 1;
    if (by > (best?.by ?? 0)) best = { g, t, phase, a, b, by };
  }));
  return { best, count };
}

/** Joint credit that blames a good slate or praises a bad ranking. */
const misplaced = (index) => clash(index, advantages("grpo", index, Infinity), advantages("fgrpo", index, Infinity),
  (phase, a, b) => (phase === "slate" ? a < 0 && b > 0 : a > 0 && b < 0)).best;

function openGroup(index, chosen) {
  Object.assign(state, { group: index, count: DATA.groups[index].rollouts.length, rollout: chosen ?? misplaced(index)?.g ?? 0 });
  for (const side of ["upper", "lower"]) if (!methods().includes(state[side])) state[side] = side === "upper" ? "grpo" : "fgrpo";
  picked = null;
}

// --- drawing ------------------------------------------------------------------------------------------------------------

const $ = (id) => document.getElementById(id);

function el(name, attributes = {}, ...children) {
  const e = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) e.setAttribute(key, value);
  e.append(...children);
  return e;
}

const fixed = (x) => x.toFixed(2);
const sign = (x, digits) => (Number(x.toFixed(digits)) === 0 ? "neutral" : x > 0 ? "praise" : "blame");
const number = (x, digits = 2) => ({ neutral: "", praise: "+", blame: "\u2212" })[sign(x, digits)] + Math.abs(x).toFixed(digits);
const title = (c) => group().titles[c];
const starred = (c) => (group().gains[c] > 0 ? "\u2605 " : "") + title(c);
const rewardName = () => (state.reward === "f1" ? "F1" : state.reward);
const ndcgName = () => `NDCG@${room().rank}`;

function strip(n, now) {
  const [one, other] = [now.one[n], now.other[n]];  // undefined for a rollout that does not count
  const cell = (method, x) => {
    const kind = sign(x, now.digits), words = `${kind} ${number(x, now.digits)}`;
    const e = el("span", { class: `adv ${kind}` }, el("span", { class: "hidden" }, `${method} `), words);
    e.style.setProperty("--share", now.end ? Math.abs(x) / now.end : 0);
    return e;
  };
  const tokens = tokensOf(rollouts()[n]).map(({ text, item, phase }, t) => {
    const name = item < 0 ? text : starred(item), framed = one && opposite(one[t], other[t]);
    const kind = `tok ${phase}${item < 0 ? " tag" : ""}${framed ? " clash" : ""}`;
    const cells = one ? [cell(state.upper, one[t]), cell(state.lower, other[t])] : [];
    return el("li", { class: kind, title: `${name} (${phase} phase)` }, el("b", {}, name || "\u00a0"), ...cells);
  });
  const names = (one ? ["token", state.upper, state.lower] : ["token"]).map((name) => el("span", {}, name));
  if (!tokens.length) tokens.push(el("li", {}, "No tokens: this output could not be read, and the trace holds no text of it."));
  return el("ol", { class: "strip", "aria-label": `Tokens of rollout ${n + 1}` },
    el("li", { class: "tok head", "aria-hidden": "true" }, ...names), ...tokens);
}

function words(n, { r, means }) {
  const { error, edited, slate } = rollouts()[n];
  const parts = [`slate ${rewardName()} ${fixed(r[n].slate)} (group mean ${fixed(means.slate)})`,
    `ranking ${ndcgName()} ${fixed(r[n].rank)} (group mean ${fixed(means.rank)})`];
  if (error) parts.push(`format error, ${error}: ${number(-RUN.penalty)} on the ${slate.length ? "rank" : "slate"} reward`);
  if (edited) parts.push("moved by hand, drawn with one token per candidate");
  if (n >= state.count) parts.push(`does not count while G is ${state.count}`);
  return parts.map((part) => el("p", {}, part));
}

/** What is seen, in two sentences. */
function seen({ one, other, r, means, digits }) {
  const { upper, lower } = state;
  if (upper === lower) return "Choose two different methods: tokens on which they disagree are framed.";
  const { best, count } = clash(state.group, one, other);
  if (!best) return `No token has opposite signs under ${upper} and ${lower}. Move a candidate to see when one has.`;
  const { g, t, phase, a, b } = best, tokens = tokensOf(rollouts()[g]), { item, text } = tokens[t];
  const near = (x, y) => Math.abs(x - y) < 1e-9;
  const whole = tokens.every((x, i) => x.phase !== phase || (near(one[g][i], a) && near(other[g][i], b)));
  const what = whole ? `the ${phase} tokens` : `the ${phase} token \u201c${item < 0 ? text : title(item)}\u201d`;
  const does = (x) => (x > 0 ? "praises" : "blames");
  return `${upper} ${does(a)} ${what} of rollout ${g + 1} (${number(a, digits)}), `
    + `${lower} ${does(b)} ${whole ? "them" : "it"} (${number(b, digits)}): `
    + `its slate earned ${rewardName()} ${fixed(r[g].slate)} against a group mean of ${fixed(means.slate)}, `
    + `its ranking ${ndcgName()} ${fixed(r[g].rank)} against ${fixed(means.rank)}. `
    + `${count} of ${one.flat().length} tokens of this group, framed below, have opposite signs under the two methods.`;
}

function drawNumbers() {
  const one = advantages(state.upper), other = advantages(state.lower), r = scores(), counted = r.slice(0, state.count);
  const means = { slate: mean(counted.map((x) => x.slate)), rank: mean(counted.map((x) => x.rank)) };
  const end = Math.max(0, ...[...one, ...other].flat().map(Math.abs)), digits = end >= 0.1 ? 2 : end >= 0.01 ? 3 : 4;
  const now = { one, other, r, means, end, digits }, { rankings, rollouts: all } = group(), chosen = state.rollout;
  const idle = (n) => (n >= state.count ? " idle" : "");
  $("lam-value").textContent = String(Number(state.lam.toFixed(4)));
  $("count-value").textContent = `${state.count} of ${all.length}`;
  $("seen").textContent = seen(now);
  $("legend").replaceChildren(
    el("span", { class: "key slate" }, "slate phase"), el("span", { class: "key rank" }, "rank phase"),
    el("span", {}, `blame ${number(-end, digits)}`, el("span", { class: "ramp" }), `praise ${number(end, digits)}`),
    el("span", {}, `upper line ${state.upper}, lower line ${state.lower}`), el("span", {}, "\u2605 relevant"),
    el("span", {}, "dashed frame: opposite signs"));
  $("bench-title").textContent = `Rollout ${chosen + 1}, yours to change`;
  $("bench").replaceChildren(el("div", { class: `card${idle(chosen)}` }, ...words(chosen, now), strip(chosen, now)));
  $("all-title").textContent = `All ${all.length} rollouts of the query`;
  const errors = rollouts().slice(0, state.count).filter((x) => x.error).length;
  const shared = ` Every ${rankings} consecutive rollouts share one slate: to change it changes it for all of them.`;
  $("means").textContent = `Means of the ${state.count} rollouts that count: slate ${rewardName()} ${fixed(means.slate)}, `
    + `ranking ${ndcgName()} ${fixed(means.rank)}. Format errors: ${errors}.${rankings > 1 ? shared : ""}`;
  $("all").replaceChildren(...range(all.length).map((n) => {
    const label = n === chosen ? "shown above" : `change rollout ${n + 1}`;
    const button = el("button", { type: "button", "data-rollout": n, "aria-pressed": n === chosen }, label);
    return el("div", { class: `card${n === chosen ? " chosen" : ""}${idle(n)}` }, el("h3", {}, `Rollout ${n + 1}`),
      ...words(n, now), button, strip(n, now));
  }));
  const { upper, lower, reward, lam, count, std } = state;
  const link = { query: state.group + 1, rollout: chosen + 1, upper, lower, reward, lambda: lam, g: count, std: Number(std) };
  try {
    history.replaceState(null, "", `#${new URLSearchParams(link)}`);
  } catch { /* a frame without an address of its own */ }
}

const listOf = (lane) => {
  const { slate, rank } = rollouts()[state.rollout];
  return { slate, rank, pool: range(group().titles.length).filter((c) => !slate.includes(c)) }[lane];
};

const placeOf = (place, list) => `place ${place + 1} of ${list.length}`;

function drawLanes(focus) {
  $("lanes").replaceChildren(...LANES.map((lane) => {
    const list = listOf(lane), name = LANE_NAMES[lane], most = lane === "pool" ? "" : `, at most ${room()[lane]}`;
    const chips = list.map((c, place) => {
      const gain = group().gains[c], worth = `gain ${Number(gain.toPrecision(3))}`;
      const note = [...(lane === "rank" ? [`rank ${place + 1}`] : []), ...(gain > 0 && gain !== 1 ? [worth] : [])].join(", ");
      const label = `${title(c)}, ${gain > 0 ? `relevant, ${worth}` : "not relevant"}, ${name}, ${placeOf(place, list)}`;
      const stop = focus?.lane === lane ? focus.c === c : place === 0;  // of the tab key: one in each list
      return el("button", { type: "button", class: "cand", "data-c": c, title: title(c), "aria-label": label,
        "aria-pressed": picked?.c === c && picked.lane === lane, tabindex: stop ? 0 : -1 },
      el("span", { class: "grip" }, "\u2807"), el("span", { class: "name" }, starred(c)), el("small", {}, note));
    });
    return el("section", { class: `lane ${lane}`, "data-lane": lane },
      el("h3", {}, `${name[0].toUpperCase()}${name.slice(1)}: ${list.length} candidates${most}`),
      el("div", { class: "items", role: "group", "aria-label": name }, ...chips));
  }));
  if (focus) $("lanes").querySelector(`[data-lane=${focus.lane}] [data-c="${focus.c}"]`)?.focus();
}

function drawChoices() {
  const fill = (id, options, value) => {
    $(id).replaceChildren(...options.map(([key, text]) => el("option", { value: key }, text)));
    $(id).value = value;
  };
  const label = ({ id, step, query }) => `${id}${step === null ? "" : `, step ${step}`} \u00b7 ${query.slice(0, 50)}`;
  fill("group", DATA.groups.map((g, i) => [i, `${i + 1} of ${DATA.groups.length}: ${label(g)}`]), state.group);
  for (const side of ["upper", "lower"]) fill(side, methods().map((m) => [m, m]), state[side]);
  fill("reward", [["recall", "recall"], ["precision", "precision"], ["f1", "F1"]], state.reward);
  for (const [key, value] of [["min", 2 * step()], ["max", group().rollouts.length], ["step", step()], ["value", state.count]])
    $("count")[key] = value;
  $("lam").value = state.lam;
  $("std").checked = state.std;
  const { history: past, entries, query } = group(), more = entries > past.length ? `, the first ${past.length} here` : "";
  $("query").replaceChildren(el("p", {}, el("strong", {}, "Query "), query || "(none: the history alone)"));
  if (past.length) $("query").append(el("details", {}, el("summary", {}, `History: ${entries} entries${more}`),
    el("ol", {}, ...past.map((text) => el("li", {}, text)))));
  $("methods").replaceChildren(...methods().flatMap((m) => [el("dt", {}, m), el("dd", {}, DATA.methods[m])]));
}

function draw() {
  drawChoices();
  drawLanes();
  drawNumbers();
}

// --- moving candidates --------------------------------------------------------------------------------------------------

let picked = null, drag = null;
const say = (text) => { $("said").textContent = text; };

function move(c, from, to, at) {
  const x = rollouts()[state.rollout], limit = room(), without = (list) => list.filter((i) => i !== c);
  const insert = (list) => {
    const was = list.indexOf(c), rest = without(list), place = Math.max(0, at - (was >= 0 && was < at ? 1 : 0));
    return [...rest.slice(0, place), c, ...rest.slice(place)];
  };
  let { slate, rank } = x;
  if (to === "pool") [slate, rank] = [without(slate), without(rank)];
  else if (to === "slate" && from === "rank") rank = without(rank);  // it stays in the slate
  else if (to === "slate") slate = insert(slate);
  else [slate, rank] = [slate.includes(c) ? slate : [...slate, c], insert(rank)];
  const full = slate.length > limit.slate ? "slate" : rank.length > limit.rank ? "rank" : "";
  if (full) say(`The ${LANE_NAMES[full]} is full: it holds at most ${limit[full]} candidates. Move another one out first.`);
  else if (slate.join() !== x.slate.join() || rank.join() !== x.rank.join()) change(slate, rank);
  const lane = full ? from : to, list = listOf(lane);
  if (picked) picked = { c, lane };
  drawLanes({ lane, c });
  drawNumbers();
  const r = scores()[state.rollout];
  if (!full) say(`${title(c)}: ${LANE_NAMES[lane]}, ${placeOf(list.indexOf(c), list)}. `
    + `Slate ${rewardName()} ${fixed(r.slate)}, ranking ${ndcgName()} ${fixed(r.rank)}.`);
}

function change(slate, rank) {
  const K = group().rankings, first = Math.floor(state.rollout / K) * K, before = rollouts()[state.rollout].slate;
  const put = (x, ranked) =>
    Object.assign(x, { slate, rank: ranked, edited: true, error: slate.length && ranked.length ? "" : "malformed" });
  if (slate.join() !== before.join())
    for (const x of rollouts().slice(first, first + K)) put(x, x.rank.filter((c) => slate.includes(c)));
  put(rollouts()[state.rollout], rank);
}

const at = (chip) => ({ c: Number(chip.dataset.c), lane: chip.closest(".lane").dataset.lane });
const chipsOf = (lane) => [...lane.querySelectorAll(".cand")];
const laneUnder = (e) => document.elementFromPoint(e.clientX, e.clientY)?.closest(".lane");

function endDrag() {
  drag?.ghost?.remove();
  for (const lane of $("lanes").children) lane.classList.remove("over");
  drag = null;
}

$("lanes").addEventListener("pointerdown", (e) => {
  const chip = e.target.closest(".cand");
  if (!chip || e.button || drag || (e.pointerType === "touch" && !e.target.closest(".grip"))) return;
  drag = { chip, id: e.pointerId, x: e.clientX, y: e.clientY };
});
document.addEventListener("pointermove", (e) => {
  if (!drag || e.pointerId !== drag.id) return;
  if (!drag.ghost) {
    if (Math.hypot(e.clientX - drag.x, e.clientY - drag.y) < 5) return;
    drag.ghost = document.body.appendChild(drag.chip.cloneNode(true));
    drag.ghost.classList.add("ghost");
    drag.ghost.setAttribute("aria-hidden", "true");
  }
  drag.ghost.style.setProperty("left", `${e.clientX + 6}px`);
  drag.ghost.style.setProperty("top", `${e.clientY + 6}px`);
  if (e.clientY < 50 || e.clientY > innerHeight - 50) scrollBy(0, e.clientY < 50 ? -14 : 14);
  for (const lane of $("lanes").children) lane.classList.toggle("over", lane === laneUnder(e));
});
document.addEventListener("pointerup", (e) => {
  if (!drag || e.pointerId !== drag.id) return;
  const { chip, ghost } = drag, lane = ghost && laneUnder(e);
  endDrag();
  if (!lane) return;
  const after = ({ left, top, width, bottom }) => e.clientY < top || (e.clientY < bottom && e.clientX < left + width / 2);
  const chips = chipsOf(lane), place = chips.findIndex((x) => after(x.getBoundingClientRect())), { c, lane: from } = at(chip);
  picked = null;
  move(c, from, lane.dataset.lane, place < 0 ? chips.length : place);
});
document.addEventListener("pointercancel", endDrag);
$("lanes").addEventListener("click", (e) => {  // pick up, put down: also what Enter and the space bar do
  const chip = e.target.closest(".cand"), lane = e.target.closest(".lane");
  if (picked && lane && !(chip && at(chip).c === picked.c)) {
    const { c, lane: from } = picked, place = chip ? chipsOf(lane).indexOf(chip) : chipsOf(lane).length;
    picked = null;
    return move(c, from, lane.dataset.lane, place);
  }
  if (!chip) return;
  picked = picked ? null : at(chip);
  say(`${title(at(chip).c)} is ${picked ? "picked up: press where it should go, or use the arrow keys" : "let go"}.`);
  drawLanes(at(chip));
});
$("lanes").addEventListener("keydown", (e) => {
  const chip = e.target.closest(".cand");
  const key = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[e.key];
  if (chip && e.key === "Escape") {
    picked = null;
    drawLanes(at(chip));
  }
  if (!chip || !key) return;
  e.preventDefault();
  const { c, lane } = at(chip), chips = chipsOf(chip.closest(".lane")), place = chips.indexOf(chip);
  const to = LANES[LANES.indexOf(lane) + key[0]];
  if (!picked) {
    const next = chips[place + key[0] + key[1]];
    if (next) drawLanes(at(next));
  } else if (key[0] && to) move(c, lane, to, listOf(to).length);
  else if (key[1]) move(c, lane, lane, place + (key[1] > 0 ? 2 : -1));
});

// --- choices ------------------------------------------------------------------------------------------------------------

function choose(index, chosen) {
  openGroup(index, chosen);
  say("");
  draw();
}
$("group").addEventListener("change", (e) => choose(Number(e.target.value)));
$("previous").addEventListener("click", () => choose((state.group + DATA.groups.length - 1) % DATA.groups.length));
$("next").addEventListener("click", () => choose((state.group + 1) % DATA.groups.length));
const onChoice = (name, event, read) => $(name).addEventListener(event, (e) => {
  state[name] = read(e.target);
  drawNumbers();
});
for (const name of ["upper", "lower", "reward"]) onChoice(name, "change", (e) => e.value);
for (const name of ["lam", "count"]) onChoice(name, "input", (e) => Number(e.value));
onChoice("std", "change", (e) => e.checked);
$("all").addEventListener("click", (e) => {
  const n = e.target.closest("[data-rollout]")?.dataset.rollout;
  if (n === undefined) return;
  state.rollout = Number(n);
  picked = null;
  draw();
  $("bench-title").scrollIntoView({ block: "nearest" });
});
$("reset").addEventListener("click", () => {
  copies[state.group] = group().rollouts.map((x) => ({ ...x }));
  Object.assign(state, { reward: RUN.reward, lam: RUN.lam, std: RUN.std });
  choose(state.group, state.rollout);
});

function start() {
  const asked = new URLSearchParams(location.hash.slice(1));  // what a link may set; anything else in it has no effect
  const whole = (name, low, high) => {
    const x = Number(asked.get(name) ?? NaN);
    return Number.isInteger(x) && x >= low && x <= high ? x : undefined;
  };
  const best = range(DATA.groups.length).reduce((a, b) => ((misplaced(b)?.by ?? 0) > (misplaced(a)?.by ?? 0) ? b : a), 0);
  openGroup((whole("query", 1, DATA.groups.length) ?? best + 1) - 1);
  state.rollout = (whole("rollout", 1, rollouts().length) ?? state.rollout + 1) - 1;
  const count = whole("g", 2, rollouts().length), lam = Number(asked.get("lambda") ?? NaN);
  if (count && count % step() === 0) state.count = count;
  if (lam >= 0 && lam <= 1e6) state.lam = lam;
  for (const side of ["upper", "lower"]) if (methods().includes(asked.get(side))) state[side] = asked.get(side);
  if (Object.hasOwn(WORTH, asked.get("reward") ?? "")) state.reward = asked.get("reward");
  if (asked.has("std")) state.std = asked.get("std") === "1";
  $("terms").open = innerWidth >= 1024;
  $("about").replaceChildren(el("h2", {}, "Where this comes from"), ...RUN.about.map((text) => el("p", {}, text)));
  draw();
}
start();
