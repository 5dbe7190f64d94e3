// The visit's results, kept in the browser alone: to look at again, restore, compare and save. The
// pictures are files of the server, which forgets them in time; then they leave the list.
(() => {
  const STORE = "controlloop-history";
  const WAITING = "controlloop-restore"; // the result that the next page restores
  const MOST = 60;
  const read = () => {
    try {
      const found = JSON.parse(localStorage.getItem(STORE) ?? "[]");
      return Array.isArray(found) ? found.filter(({ url, app } = {}) => url && app) : [];
    } catch {
      return []; // somebody else's text, or no storage in this browser
    }
  };
  const write = (items) => {
    try {
      localStorage.setItem(STORE, JSON.stringify(items.slice(0, MOST)));
    } catch (error) {
      console.warn("The history is not kept:", error); // storage is full or forbidden
    }
    show();
  };
  const node = (tag, attributes = {}, ...children) => {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
      else made.setAttribute(name, value);
    }
    made.append(...children);
    return made;
  };
  const here = () => location.pathname.split("/").filter(Boolean).pop() ?? "";
  const nameOf = (url) => decodeURIComponent(url).split("/").pop();
  let chosen = [];

  const put = async (answer, url, box) => {
    const content = await answer.blob();
    const transfer = new DataTransfer();
    transfer.items.add(new File([content], nameOf(url), { type: content.type }));
    box.files = transfer.files;
    box.dispatchEvent(new Event("change", { bubbles: true }));
  };
  /** Waits until a selector finds something, or nothing any more, some seconds at most. */
  const until = async (selector, isThere = true) => {
    for (let i = 0; i < 100 && Boolean(document.querySelector(selector)) !== isThere; i += 1) {
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  };
  /** The input picture comes before the settings: with another picture Gradio's page puts an edit away. */
  const pictureFrom = async (url) => {
    if (!url || !document.getElementById("image") || document.querySelector("#image img")?.src === url) return;
    const answer = await fetch(url).catch(() => null);
    if (!answer?.ok) return; // the server has forgotten it
    document.querySelector('#image button[aria-label="Remove Image"]')?.click();
    await until("#image img", false);
    await until("#image input[type=file]");
    await put(answer, url, document.querySelector("#image input[type=file]"));
    await until("#image img");
  };
  const settingsFrom = async ({ url, picture }) => {
    const box = document.querySelector("#restore input[type=file]");
    if (!box) return;
    const answer = await fetch(url);
    if (!answer.ok) return forget(url);
    await pictureFrom(picture);
    await put(answer, url, box);
    document.querySelector(".cl-input")?.scrollIntoView({ block: "start", behavior: "smooth" });
  };
  const restore = (item) => {
    const link = document.querySelector(`.nav-holder a[href$="/${item.app}"]`);
    if (item.app === here() || !link) return settingsFrom(item);
    sessionStorage.setItem(WAITING, JSON.stringify(item));
    location.assign(link.href);
  };
  const forget = (url) => {
    chosen = chosen.filter((one) => one !== url);
    write(read().filter((one) => one.url !== url));
  };
  const save = (urls) => urls.forEach((url, i) => setTimeout(() => {
    node("a", { href: url, download: nameOf(url) }).click(); // browsers drop a burst
  }, 250 * i));

  const compare = () => {
    const items = read().filter(({ url }) => chosen.includes(url));
    const close = node("button", { type: "button", class: "cl-button" }, "Close");
    const dialog = node("dialog", { class: "cl-beside", "aria-label": "Two results side by side" },
      node("div", {}, ...items.map((item) => node("figure", {},
        node("img", { src: item.url, alt: item.prompt }), node("figcaption", {}, words(item))))), close);
    close.addEventListener("click", () => dialog.close());
    dialog.addEventListener("close", () => dialog.remove());
    document.querySelector(".gradio-container").append(dialog);
    dialog.showModal();
  };
  const words = ({ title, score, seed, prompt }) =>
    [score && `${score} of 100`, prompt, title, `seed ${seed}`].filter(Boolean).join(" · ");

  const tile = (item) => {
    const box = node("input", { type: "checkbox", "aria-label": `Choose ${nameOf(item.url)}` });
    box.checked = chosen.includes(item.url);
    box.addEventListener("change", () => {
      chosen = box.checked ? [...chosen, item.url].slice(-2) : chosen.filter((url) => url !== item.url);
      show();
    });
    return node("figure", {},
      node("img", { src: item.url, alt: item.prompt || item.title, loading: "lazy", onerror: () => forget(item.url) }),
      node("figcaption", {}, node("label", {}, box, node("span", { title: words(item) }, words(item))),
        node("span", { class: "cl-history-do" },
          node("button", { type: "button", class: "cl-button", onclick: () => restore(item) }, "Restore"),
          node("a", { class: "cl-button", href: item.url, download: nameOf(item.url) }, "Save"))));
  };

  const show = () => {
    const place = document.querySelector("#history [data-history]");
    if (!place) return;
    const items = read();
    const isOpen = place.querySelector("details")?.open ?? false;
    if (!items.length) return place.replaceChildren();
    const button = (text, press, isOff = false) => {
      const made = node("button", { type: "button", class: "cl-button", onclick: press }, text);
      made.disabled = isOff;
      return made;
    };
    const all = node("details", { class: "cl-history" },
      node("summary", {}, `Your results in this browser (${items.length})`),
      node("div", { class: "cl-actions" },
        button("Compare two", compare, chosen.length !== 2),
        button("Save all", () => save(items.map(({ url }) => url))),
        button("Forget all", () => { chosen = []; write([]); })),
      node("div", { class: "cl-history-tiles" }, ...items.map(tile)));
    all.open = isOpen;
    place.replaceChildren(all);
  };

  const note = () => {
    const known = new Set(read().map(({ url }) => url));
    const title = document.querySelector(".cl-head h1")?.textContent ?? "";
    const prompt = document.querySelector("#prompt textarea")?.value ?? "";
    const picture = document.querySelector("#image img")?.src ?? "";
    const made = [...document.querySelectorAll("#results .cl-card, #results .cl-so-far figure:has(img)")].flatMap((card) => {
      const url = card.querySelector(".cl-made a[download], :scope > figcaption a[download]")?.href;
      if (!url || known.has(url) || url.startsWith("data:")) return []; // a full disk's has no file
      return [{
        app: here(), title, url, prompt, picture,
        score: card.querySelector(".cl-score b, figcaption b")?.textContent ?? "",
        seed: card.querySelector(".cl-seed code, figcaption code")?.textContent ?? "",
      }];
    });
    if (made.length) write([...made, ...read()]);
  };

  /** Takes the result that the page before asked for, unless the visitor went elsewhere meanwhile. */
  const awaited = () => {
    try {
      const item = JSON.parse(sessionStorage.getItem(WAITING) ?? "null");
      sessionStorage.removeItem(WAITING);
      return item?.app === here() ? item : null;
    } catch {
      return null; // no storage in this browser
    }
  };
  const root = document.documentElement;
  let waiting = awaited();
  root.classList.toggle("cl-restoring", Boolean(waiting)); // nothing else fills the page: page.js, page.py

  let isAsked = false;
  const look = () => {
    if (isAsked) return;
    isAsked = true;
    setTimeout(() => {
      isAsked = false;
      note();
      const place = document.querySelector("#history [data-history]");
      if (place && !place.children.length) show();
      if (waiting && document.querySelector("#restore input[type=file]")) {
        settingsFrom(waiting).finally(() => root.classList.remove("cl-restoring"));
        waiting = null;
      }
    }, 200);
  };
  new MutationObserver(look).observe(document, { subtree: true, childList: true });
})();
