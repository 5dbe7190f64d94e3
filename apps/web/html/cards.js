// The small things inside the results: order, enlarged view, comparison of maps, seed.
(() => {
  // The enlarged view: every picture of the results, one at a time

  /** The results' pictures in the order in which they are seen. */
  const picturesBeside = (button) => {
    const all = [...button.closest(".cl-results").querySelectorAll(".cl-zoom")];
    const place = new Map(all.map((one) => [one, one.getBoundingClientRect()]));
    return all.sort((a, b) => place.get(a).top - place.get(b).top || place.get(a).left - place.get(b).left);
  };

  const enlarge = (opener) => {
    const buttons = picturesBeside(opener);
    let at = buttons.indexOf(opener);
    const dialog = document.createElement("dialog");
    dialog.className = "cl-large";
    dialog.setAttribute("aria-label", "Enlarged picture");
    dialog.innerHTML = `<img alt=""><div class="cl-large-bar">
      <button type="button" class="cl-button" data-step="-1" aria-label="Previous picture">←</button>
      <span role="status"></span><a class="cl-button">Save PNG</a>
      <button type="button" class="cl-button" data-step="1" aria-label="Next picture">→</button>
      <button type="button" class="cl-button" data-step="0">Close</button></div>`;
    const image = dialog.querySelector("img");
    const show = (step) => {
      at = (at + step + buttons.length) % buttons.length;
      const shown = buttons[at].querySelector("img");
      const link = buttons[at].closest("figure").querySelector("a[download]");
      image.src = shown.src;
      image.alt = shown.alt;
      const inverted = document.body.classList.contains("cl-invert") && shown.closest(".cl-map");
      dialog.classList.toggle("cl-inverted", Boolean(inverted));
      dialog.querySelector("span").textContent = `${shown.alt}, ${at + 1} of ${buttons.length}`;
      const save = dialog.querySelector("a");
      save.href = link.href;
      save.download = link.download;
    };
    dialog.addEventListener("click", (event) => {
      const step = event.target.closest("[data-step]")?.dataset.step;
      if (step && step !== "0") show(Number(step));
      else if (!event.target.closest("a, span")) dialog.close();
    });
    dialog.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (step) show(step);
    });
    dialog.addEventListener("close", () => {
      dialog.remove();
      buttons[at].focus();
    });
    show(0);
    document.querySelector(".gradio-container").append(dialog);
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
    zoom: enlarge,
    overlay: (button) => {
      const on = press(button);
      button.closest(".cl-compare").querySelector(".cl-pair").classList.toggle("cl-both", on);
      button.closest(".cl-compare").classList.toggle("cl-overlaid", on);
    },
    // The seed's own box is not there until "Advanced options" is opened.
    seed: (button) => type("#picked_seed input", button.dataset.seed),
    prompt: (button) => type("#prompt textarea", button.textContent),
  };

  document.addEventListener("click", (event) => {
    document.querySelectorAll("details.cl-send[open]").forEach((menu) => {
      menu.open = menu.contains(event.target);
    });
    const button = event.target.closest?.("[data-cl]");
    if (button) actions[button.dataset.cl]?.(button);
  });

  // The wipe between two maps follows its slider, and a pointer on the picture itself

  const split = (pair, percent) => {
    pair.style.setProperty("--split", `${percent}%`);
    pair.closest(".cl-compare").querySelector('[data-cl="split"]').value = percent;
  };
  document.addEventListener("input", (event) => {
    if (event.target.dataset?.cl === "split") {
      split(event.target.closest(".cl-compare").querySelector(".cl-pair"), event.target.value);
    }
  });
  for (const kind of ["pointerdown", "pointermove"]) {
    document.addEventListener(kind, (event) => {
      const pair = event.target.closest?.(".cl-pair:not(.cl-both)");
      if (!pair || !event.buttons) return;
      const box = pair.getBoundingClientRect();
      split(pair, Math.round((100 * (event.clientX - box.left)) / box.width));
    });
  }
})();
