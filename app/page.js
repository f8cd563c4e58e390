() => {
  // Tables are sorted by a click on a heading, token strips are read with the arrow keys. Their HTML is replaced at every
  // change, so the listeners are on the document.
  const cell = (row, n) => row.children[n].innerText.trim().replace("\u2212", "-");
  document.addEventListener("click", (e) => {
    const button = e.target.closest("table.sortable button[data-sort]");
    if (!button) return;
    const head = button.closest("th"), body = head.closest("table").tBodies[0], n = head.cellIndex;
    const up = head.getAttribute("aria-sort") !== "ascending";
    head.parentNode.querySelectorAll("th").forEach((th) => th.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = (row) => { const t = cell(row, n), x = parseFloat(t); return isNaN(x) ? [1, 0, t] : [0, x, t]; };
    const order = (a, b) => a[0] - b[0] || a[1] - b[1] || a[2].localeCompare(b[2]);
    [...body.rows].sort((a, b) => (up ? 1 : -1) * order(key(a), key(b))).forEach((row) => body.append(row));
  });
  const name = () => document.querySelectorAll("fieldset:not([aria-label])").forEach((set) => {
    const title = set.querySelector("[data-testid=block-info]");  // the visible title, for screen readers
    if (title) set.setAttribute("aria-label", title.innerText.trim());
  });
  const read = (token) => {
    const out = token.closest("[data-strip]").nextElementSibling, text = token.getAttribute("aria-label");
    if (out && out.classList.contains("readout") && out.textContent !== text) out.textContent = text;
  };
  new MutationObserver(() => {
    name();
    const token = document.activeElement?.closest("[data-strip] .token");
    if (token) read(token);  // an answer that redraws the strip changes its tokens in place and empties the readout
  }).observe(document.body, { childList: true, subtree: true, characterData: true });
  name();
  for (const name of ["focusin", "mouseover"])
    document.addEventListener(name, (e) => { const t = e.target.closest?.("[data-strip] .token"); if (t) read(t); });
  document.addEventListener("keydown", (e) => {
    const token = e.target.closest?.("[data-strip] .token");
    if (!token) return;
    const all = [...token.closest("[data-strip]").querySelectorAll(".token")], at = all.indexOf(token);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: all.length - 1 }[e.key];
    if (to === undefined || !all[to]) return;
    e.preventDefault();
    all.forEach((t) => (t.tabIndex = -1));
    all[to].tabIndex = 0;
    all[to].focus();
  });
}
