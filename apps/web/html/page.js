// Keys, focus, and what is in sight; cards.js has the small things inside the results. Everything is
// delegated from the document, because Gradio replaces parts of the page at any time.
(() => {
  const visible = (id) => {
    const node = document.getElementById(id);
    return node && node.offsetParent !== null && !node.disabled ? node : null;
  };
  const running = () => visible("stop") !== null;

  // Keys

  const KEYS = [
    ["Ctrl + Enter", "Run (on a Mac also ⌘ + Enter)"],
    ["Esc", "Stop the run; or close what lies over the page"],
    ["← →", "The picture before or after, in the enlarged view"],
    ["Tab, Shift + Tab", "To the next or the previous control"],
    ["Ctrl + Z, Ctrl + Y", "In an editor: undo and redo"],
    ["Arrow keys, Enter", "In an editor: move the pen, put it down and lift it"],
    ["Delete, [ ]", "In an editor: leave out the chosen joint or line; the joint before or after"],
    ["A letter", "In an editor: the tool whose button names it"],
    ["Shift, Space", "In an editor, held while drawing: straight, or move the paper"],
    ["?", "This list"],
  ];

  const showKeys = () => {
    if (document.querySelector("dialog[open]")) return;
    const dialog = document.createElement("dialog");
    dialog.className = "cl-key-map";
    const rows = KEYS.map(([keys, does]) => `<tr><th scope="row">${keys}</th><td>${does}</td></tr>`);
    dialog.innerHTML = `<h2 id="cl-key-map">Keys</h2><table>${rows.join("")}</table>
      <button type="button" class="cl-button" autofocus>Close</button>`;
    dialog.setAttribute("aria-labelledby", "cl-key-map");
    dialog.querySelector("button").addEventListener("click", () => dialog.close());
    dialog.addEventListener("close", () => dialog.remove());
    document.querySelector(".gradio-container").append(dialog);
    dialog.showModal();
  };

  /** What Esc closes before it stops a run: a dialog, an input in full screen, an open list. */
  const covering = () => document.fullscreenElement
    || document.querySelector("dialog[open], .block.fullscreen, ul.options, .api-docs");
  const typing = (node) => node.isContentEditable
    || /^(TEXTAREA|SELECT)$/.test(node.tagName)
    || (node.tagName === "INPUT" && !/^(checkbox|radio|range|button)$/.test(node.type));

  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      const run = visible("run");
      if (!run) return;
      event.preventDefault();
      event.stopPropagation();
      run.click();
    } else if (event.key === "Escape" && !covering()) {
      const menu = document.querySelector("details:is(.cl-send, .cv-more)[open]");
      if (!menu) return visible("stop")?.click();
      menu.open = false;
      menu.querySelector("summary").focus();
    } else if (event.key === "?" && !typing(event.target)) {
      event.preventDefault();
      showKeys();
    }
  }, true);
  document.addEventListener("click", (event) => {
    if (event.target.closest?.('[data-cl="keys"]')) showKeys();
  });

  // Leaving stops the run, so the browser asks. Gradio would close its connection before the answer,
  // and stop the run of a visitor who stays; this listener comes first (first_paint.py).
  addEventListener("beforeunload", (event) => {
    if (!running()) return;
    event.preventDefault();
    event.stopImmediatePropagation();
  }, true);

  // Focus: Run and Stop replace each other, and a button that is removed loses it

  const SWAPPED = ["run", "stop", "compare"];
  let focused = "";
  document.addEventListener("focusin", (event) => { focused = event.target.id; });
  document.addEventListener("pointerdown", (event) => {
    if (!SWAPPED.includes(event.target.closest?.("button")?.id)) focused = "";
  });
  const returnFocus = () => {
    if (document.activeElement === document.body && SWAPPED.includes(focused)) {
      (visible("stop") ?? visible("run"))?.focus({ preventScroll: true });
    }
  };

  // Sight: the running stage, then the results, unless the visitor has gone elsewhere meanwhile

  let wasRunning = false;
  let wentElsewhere = false;
  let followUntil = 0;
  for (const kind of ["wheel", "touchmove", "pointerdown", "keydown"]) {
    document.addEventListener(kind, (event) => {
      if (event.key === "Escape" || event.target.closest?.("#stop")) return; // what it ends is looked at
      wentElsewhere = true;
      root.style.overflowAnchor = ""; // what they look at stays
    }, { passive: true, capture: true }); // before what the click or the key sets off
  }
  const bringIntoSight = (part) => {
    if (!part || wentElsewhere) return;
    const { top } = part.getBoundingClientRect();
    if (top < 0 || top > innerHeight * 0.35) part.scrollIntoView({ block: "start" });
  };
  const followRun = () => {
    const now = running();
    if (now !== wasRunning) {
      wasRunning = now;
      // Else the first finished images push the stage out of sight: the browser holds what is below.
      root.style.overflowAnchor = now ? "none" : "";
      if (now) wentElsewhere = false;
      followUntil = performance.now() + 1000; // what stands above changes its height a little later
    }
    // Not their column: an editor or a mask stands above them.
    if (performance.now() < followUntil) {
      // A strip lies over results that are there; at the end the stage may say why there are none.
      const isStrip = now && document.querySelector("#results .cl-results");
      bringIntoSight(isStrip ? visible("results") : visible("stage") ?? visible("results"));
    }
  };

  // What a button opens may be far from it; Live's picture stands at the foot of a narrow window
  const OPENS = {
    preview: "map", edit: "editor", detected: "editor", "back-edit": "editor",
    "paint-mask": "mask-panel", "back-mask": "mask-panel",
  };
  let opening = "";
  let openUntil = 0;
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("button");
    opening = OPENS[button?.id] ?? "";
    if (opening === "map" && document.getElementById("previews")) opening = "previews";
    openUntil = 0;
    if (opening) wentElsewhere = false;
    if (button?.id === "live" && innerWidth <= 860) document.getElementById("canvas").scrollIntoView();
  });
  const followOpening = () => {
    if (!opening) return;
    const panel = visible(opening);
    if (!panel?.querySelector(".cv-screen, img")) return;
    openUntil ||= performance.now() + 1000;
    bringIntoSight(panel);
    if (performance.now() > openUntil) opening = "";
  };

  // What Gradio has no option for

  /** Each page's tab has the name of its app. */
  const nameTab = () => {
    const app = document.querySelector(".cl-head h1")?.textContent;
    const title = app && app !== "ControlLoop" ? `${app} · ControlLoop` : "ControlLoop";
    if (app && document.title !== title) document.title = title;
  };

  /** Gradio leaves the button around a shown map without a name, and puts a button into its link. */
  const nameMap = () => {
    document.querySelector("#map button:not([aria-label]):has(img)")?.setAttribute("aria-label", "Control map");
    const inner = document.querySelector("#map .download-link button");
    if (inner) inner.tabIndex = -1;
  };

  /** Examples are pictures; their names are the prompts that they bring. */
  const nameExamples = () => {
    const names = document.querySelectorAll(".cl-example-names li");
    document.querySelectorAll(".cl-examples .gallery-item").forEach((button, i) => {
      const name = names[i]?.textContent;
      if (!name || button.getAttribute("aria-label") === name) return;
      button.setAttribute("aria-label", name);
      button.title = name;
    });
  };

  // The row of apps is wider than a phone: the app that is open stands in its middle, once the page
  // has its style: until then the links have other widths.
  let placed = false;
  const placeRow = () => {
    const here = document.querySelector(".nav-holder nav a.active");
    if (placed || !here || !root.classList.contains("cl-ready")) return;
    const row = here.parentElement;
    row.scrollLeft = here.offsetLeft - (row.clientWidth - here.offsetWidth) / 2;
    placed = true;
  };

  // first.css hides the page until it stands still: until it has its parts and its style, and none
  // has been added for a moment
  const root = document.documentElement;
  const hasAll = () => document.querySelector("footer")
    && document.querySelector("#run, .cl-home")
    && getComputedStyle(root).getPropertyValue("--cl-ink");
  let settling = 0;
  const appear = () => {
    if (root.classList.contains("cl-ready") || !hasAll()) return;
    clearTimeout(settling);
    settling = setTimeout(() => {
      root.classList.add("cl-ready");
      placeRow();
      fillFirstVisit();
    }, 150);
  };

  const HEARD_WITHIN_MS = 2000, MOST_CLICKS = 10;

  /** On the first visit of a page an example is there, so that one press of Run gives a picture.
   *
   * Gradio may have shown the examples and not listen to them yet: what it has not heard is said again. */
  const fillFirstVisit = (clicks = 0) => {
    const visited = `controlloop-visited:${location.pathname}`;
    const begun = new URLSearchParams(location.search).size || document.getElementById("canvas")
      || document.querySelector("#image img") || document.querySelector("#prompt textarea")?.value
      || root.classList.contains("cl-restoring"); // history.js fills the page
    const example = document.querySelector(".cl-examples .gallery-item");
    try {
      if (!clicks && localStorage.getItem(visited) !== null) return;
      if (!begun && !example && document.querySelector(".cl-examples")) {
        setTimeout(fillFirstVisit, 200); // Gradio places the pictures later
        return;
      }
      localStorage.setItem(visited, "");
    } catch {
      return; // a browser without storage cannot say whether it is the first
    }
    if (begun || !example || clicks === MOST_CLICKS) return;
    example.click();
    setTimeout(() => fillFirstVisit(clicks + 1), HEARD_WITHIN_MS);
  };

  let due = false;
  const tidy = () => {
    due = false;
    appear();
    nameTab();
    nameExamples();
    nameMap();
    placeRow();
    followRun();
    followOpening();
    returnFocus();
  };
  new MutationObserver(() => {
    if (!due) requestAnimationFrame(tidy);
    due = true;
  }).observe(root, { childList: true, subtree: true });
})();
