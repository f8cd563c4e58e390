() => {
  // Tables are sorted by a click on a heading, token strips are read with the arrow keys. Their HTML is replaced at every
  // change, so the listeners are on the document.
  const cell = (row, n) => row.children[n].innerText.trim().replaceAll("\u2212", "-");
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
  const search = (input) => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean), box = input.closest(".prose, div");
    const rows = [...box.querySelectorAll("table.sortable tbody tr")];
    rows.forEach((row) => (row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word))));
    box.querySelector(".found").textContent = words.length ? `${rows.filter((row) => !row.hidden).length} found` : "";
  };
  document.addEventListener("input", (e) => { if (e.target.matches("input[data-filter]")) search(e.target); });
  const name = () => document.querySelectorAll("fieldset:not([aria-label])").forEach((set) => {
    const title = set.querySelector("[data-testid=block-info]");  // the visible title, for screen readers
    if (title) set.setAttribute("aria-label", title.innerText.trim());
  });
  const read = (token) => {
    const out = token.closest(".completion")?.querySelector(".readout"), text = token.getAttribute("aria-label");
    if (out && out.textContent !== text) out.textContent = text;
  };
  new MutationObserver(() => {
    name();
    const token = document.activeElement?.closest("[data-strip] .token");
    if (token) read(token);  // an answer that redraws the strip changes its tokens in place and empties the readout
  }).observe(document.body, { childList: true, subtree: true, characterData: true });
  name();
  for (const name of ["focusin", "mouseover"])
    document.addEventListener(name, (e) => { const t = e.target.closest?.("[data-strip] .token"); if (t) read(t); });
  document.addEventListener("focusout", (e) => {  // a list that is left by Tab would stay open
    if (e.target.matches("input[role=listbox], input[role=combobox]"))
      e.target.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape", bubbles: true }));
  });
  document.addEventListener("click", (e) => {
    const button = e.target.closest("button[data-save]");
    if (!button) return;
    const page = button.closest("p").nextElementSibling.srcdoc, link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([page], { type: "text/html" }));
    link.download = button.dataset.save;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
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
  // The address names what the page shows; each change is a place to go back to, but for that of the first answer.
  const LONGEST = 6000;  // characters of the Playground's form in an address
  let ready = false, view = "inspect";
  const address = (shown, first) => {
    ready ||= first;
    const url = new URL(location);
    if (first) shown = { tab: url.searchParams.get("tab") || "inspect", ...shown };
    for (const [name, value] of Object.entries(shown))
      value ? url.searchParams.set(name, value) : url.searchParams.delete(name);
    if (shown.tab) document.body.dataset.tab = shown.tab;
    if (shown.tab && shown.tab !== "files") view = shown.tab;
    if (ready && url.href !== location.href) history[first ? "replaceState" : "pushState"]({}, "", url);
  };
  const fitting = (form) => { const text = JSON.stringify(form); return text.length > LONGEST ? "" : text; };
  const copied = (text) => {  // without https there is no navigator.clipboard
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  };
  const safe = (text) => text.replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);
  const saved = () => {  // what the last view before this tab shows, as a page that needs nothing else
    const parts = [...document.querySelectorAll(`#tab-${view} [id^=at-]`)].map((slot) => {
      const copy = slot.cloneNode(true);
      copy.querySelectorAll("iframe, input, .found, button[data-save], .wrap, svg:not(.chart)").forEach((e) => e.remove());
      return copy.textContent.trim() ? copy.outerHTML : "";
    });
    if (!parts.join("")) return false;
    const css = [...document.querySelectorAll("style")].map((e) => e.textContent).find((text) => text.includes("#at-busy")) ?? "";
    const title = safe(`F-GRPO app, ${view}: ${["run", "query"].map((n) => new URL(location).searchParams.get(n) ?? "").join(", ")}`);
    const link = document.createElement("a"), page = `<!doctype html><html lang="en"><head><meta charset="utf-8"><title>${title}</title>
<meta name="viewport" content="width=device-width"><style>${css}
body { font-family: system-ui, sans-serif; max-width: 75rem; margin: 1rem auto; padding: 0 1rem; color-scheme: light dark; }
[id^=at-] { max-height: none !important; }</style></head><body class="prose"><h1>${title}</h1><p>${safe(location.href)}</p>${parts.join("")}</body></html>`;
    link.href = URL.createObjectURL(new Blob([page], { type: "text/html" }));
    link.download = `fgrpo-${view}.html`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    return true;
  };
  window.app = {
    address,
    save: () => `<p role="status">${saved() ? `The view ${view} is saved.` : `The view ${view} shows nothing yet.`}</p>`,
    form: (form) => address({ form: fitting(form) }),
    copy: async (form) => {  // a link to what was seen before the tab with the button
      const url = new URL(location), long = view === "playground" && !fitting(form);
      url.searchParams.set("tab", view);
      if (view === "playground") url.searchParams.set("form", fitting(form));
      const done = await (navigator.clipboard?.writeText(url.href).then(() => true, () => copied(url.href)) ?? copied(url.href));
      const words = [done ? "The link is copied." : "The browser does not let a page copy: select the link and copy it."];
      if (long) words.push("The texts of the Playground are too long for a link, and are not in it.");
      return [url.href, `<p role="status">${words.join(" ")}</p>`];
    },
  };
}
