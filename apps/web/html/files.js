// Files on their way in: HEIC by its name, and a picture dropped anywhere.
(() => {
  // Gradio takes what the system calls image/…; most systems have no type for an iPhone's HEIC.
  const HEIC = /\.(heic|heif)$/i;
  const named = (file) => file.type.startsWith("image/") || !HEIC.test(file.name)
    ? file : new File([file], file.name, { type: "image/heic", lastModified: file.lastModified });
  const carrying = (files) => {
    const transfer = new DataTransfer();
    [...files].forEach((file) => transfer.items.add(named(file)));
    return transfer;
  };
  const needsName = (files) => [...files].some((file) => named(file) !== file);

  document.addEventListener("change", (event) => {
    const box = event.target;
    if (box.type === "file" && needsName(box.files)) box.files = carrying(box.files).files;
  }, true);

  // Dropped beside every box for files, a picture restores its settings, from anywhere on the page; on a
  // page that restores none it is the input

  const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  const ownBox = (event) => event.target.closest?.(
    '[aria-dropeffect], .upload-container, [data-testid="image"], .cl-canvas, #restore',
  );
  const restoreBox = () => document.querySelector("#restore input[type=file]");
  const inputBox = () => document.querySelector("#image input[type=file]");

  /** What was restored is told at the foot of the settings, far from where a picture may be dropped. */
  const bringNoteIntoSight = () => {
    const place = document.getElementById("restored");
    const isNote = (added) => added.matches?.(".cl-restored") || added.querySelector?.(".cl-restored");
    const coming = new MutationObserver((changes) => {
      if (!changes.some(({ addedNodes }) => [...addedNodes].some(isNote))) return;
      coming.disconnect();
      const until = performance.now() + 1000; // the settings above change their height meanwhile
      const follow = () => {
        place.scrollIntoView({ block: "nearest" });
        if (performance.now() < until) requestAnimationFrame(follow);
      };
      follow();
    });
    coming.observe(place, { childList: true, subtree: true });
  };

  document.addEventListener("dragover", (event) => {
    if (!hasFiles(event) || ownBox(event)) return;
    event.preventDefault(); // else the browser would open the file in place of the page
    const [restores, takes] = [Boolean(restoreBox()), Boolean(inputBox())];
    if (!restores && !takes) event.dataTransfer.dropEffect = "none"; // and there is no drop
    document.body.classList.toggle("cl-dragging", restores || takes);
    document.body.classList.toggle("cl-dragging-input", !restores && takes);
  });
  for (const kind of ["dragleave", "dragend", "drop"]) {
    document.addEventListener(kind, () => document.body.classList.remove("cl-dragging", "cl-dragging-input"), true);
  }
  document.addEventListener("drop", (event) => {
    const files = event.dataTransfer?.files ?? [];
    if (!files.length) return;
    if (ownBox(event)) {
      if (!needsName(files)) return;
      event.preventDefault();
      event.stopImmediatePropagation();
      event.target.dispatchEvent(
        new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer: carrying(files) }),
      );
      return;
    }
    event.preventDefault();
    const box = restoreBox() ?? inputBox();
    if (!box) return;
    box.files = carrying([files[0]]).files;
    box.dispatchEvent(new Event("change", { bubbles: true }));
    if (restoreBox()) bringNoteIntoSight();
  }, true);
})();
