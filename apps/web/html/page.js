// Keys, and the small things inside the result cards. Everything is delegated from the document,
// because Gradio replaces the cards' HTML whenever new results arrive.
(() => {
  const visible = (id) => {
    const node = document.getElementById(id);
    return node && node.offsetParent !== null && !node.disabled ? node : null;
  };

  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      const run = visible("run");
      if (!run) return;
      event.preventDefault();
      event.stopPropagation();
      run.click();
    } else if (event.key === "Escape" && !document.querySelector("dialog[open]")) {
      visible("stop")?.click();
    }
  }, true);

  const enlarge = (image) => {
    const dialog = document.createElement("dialog");
    dialog.className = "cl-large";
    const inverted = document.body.classList.contains("cl-invert") && image.closest(".cl-map");
    dialog.classList.toggle("cl-inverted", Boolean(inverted));
    dialog.append(Object.assign(new Image(), { src: image.src, alt: image.alt }));
    dialog.addEventListener("click", () => dialog.close());
    dialog.addEventListener("close", () => dialog.remove());
    document.body.append(dialog);
    dialog.showModal();
  };

  const press = (button) => {
    const on = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(on));
    return on;
  };

  const type = (selector, text) => {
    const box = document.querySelector(selector);
    box.value = text;
    box.dispatchEvent(new Event("input", { bubbles: true }));
    box.dispatchEvent(new Event("change", { bubbles: true }));
  };

  const actions = {
    order: (button) => button.closest(".cl-results").classList.toggle("cl-by-score", press(button)),
    zoom: (button) => enlarge(button.querySelector("img")),
    overlay: (button) => {
      const on = press(button);
      button.closest(".cl-compare").querySelector(".cl-pair").classList.toggle("cl-both", on);
      button.closest(".cl-compare").classList.toggle("cl-overlaid", on);
    },
    seed: (button) => type("#seed input", button.dataset.seed),
    prompt: (button) => type("#prompt textarea", button.textContent),
    "save-all": (button) => {
      const links = button.closest(".cl-results").querySelectorAll(".cl-made a[download]");
      links.forEach((link, i) => setTimeout(() => link.click(), 250 * i)); // browsers drop a burst
    },
  };

  document.addEventListener("click", (event) => {
    document.querySelectorAll("details.cl-send[open]").forEach((menu) => {
      menu.open = menu.contains(event.target);
    });
    const button = event.target.closest?.("[data-cl]");
    if (button) actions[button.dataset.cl]?.(button);
    if (event.target.closest?.("#run") && window.innerWidth <= 860) {
      document.getElementById("results-column")?.scrollIntoView({ behavior: "smooth", block: "start" });
    }
  });

  document.addEventListener("input", (event) => {
    if (event.target.dataset?.cl === "split") {
      const pair = event.target.closest(".cl-compare").querySelector(".cl-pair");
      pair.style.setProperty("--split", `${event.target.value}%`);
    }
  });

  // The row of apps is wider than a phone: the app that is open stands in its middle.
  let tries = 0;
  const finding = setInterval(() => {
    const here = document.querySelector(".nav-holder nav a.active");
    const row = here?.parentElement;
    if (row) row.scrollLeft = here.offsetLeft - (row.clientWidth - here.offsetWidth) / 2;
    tries += 1;
    if (here || tries > 100) clearInterval(finding);
  }, 300);

  // Gradio's canvas starts without a tool in hand; a person expects the brush.
  let looks = 0;
  const looking = setInterval(() => {
    const brush = document.querySelector('#canvas button[aria-label="Brush"]');
    brush?.click();
    looks += 1;
    if (brush || looks > 100) clearInterval(looking);
  }, 300);
})();
