// A brush on a canvas over an image: what is painted is the area to generate.

const LARGEST = 2048; // pixels of the longer side of the mask; the server scales it to the image
const UNDOS = 20;
const PAINT = "#e8368f"; // seen on light and on dark images
const STEP = 0.02; // of the longer side, for an arrow key

function cover(context, operation, colour) {
  context.globalCompositeOperation = operation;
  context.fillStyle = colour;
  context.fillRect(0, 0, context.canvas.width, context.canvas.height);
  context.globalCompositeOperation = "source-over";
}

export class Mask {
  #canvas; #context; #undo = []; #last = null; #cursor = null; #changed;
  erasing = false;
  /** Diameter as a share of the longer side. */
  brush = 0.12;

  /** `changed` is called when a stroke has ended. */
  constructor(canvas, changed) {
    this.#canvas = canvas;
    this.#context = canvas.getContext("2d", { willReadFrequently: true });
    this.#changed = changed;
    canvas.addEventListener("pointerdown", (event) => this.#begin(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => this.#end());
    canvas.addEventListener("keydown", (event) => this.#key(event));
    canvas.addEventListener("blur", () => { this.#cursor = null; this.#place(); });
  }

  /** Start with an empty mask for an image of this size in pixels. */
  reset(width, height) {
    const scale = Math.min(1, LARGEST / Math.max(width, height));
    this.#canvas.width = Math.max(1, Math.round(width * scale));
    this.#canvas.height = Math.max(1, Math.round(height * scale));
    this.#undo = [];
  }

  clear() {
    this.#remember();
    this.#context.clearRect(0, 0, this.#canvas.width, this.#canvas.height);
    this.#changed();
  }

  undo() {
    const before = this.#undo.pop();
    if (before) this.#context.putImageData(before, 0, 0);
    this.#changed();
  }

  get empty() {
    const { data } = this.#context.getImageData(0, 0, this.#canvas.width, this.#canvas.height);
    for (let index = 3; index < data.length; index += 4) if (data[index]) return false;
    return true;
  }

  /** A PNG, white where it was painted and black elsewhere; null if nothing was. */
  async blob() {
    if (this.empty) return null;
    const copy = document.createElement("canvas");
    copy.width = this.#canvas.width;
    copy.height = this.#canvas.height;
    const context = copy.getContext("2d");
    context.drawImage(this.#canvas, 0, 0);
    cover(context, "source-in", "#fff");
    cover(context, "destination-over", "#000");
    return new Promise((resolve) => copy.toBlob(resolve, "image/png"));
  }

  /** Paint the mask of a PNG that `blob` made. */
  async load(blob) {
    const bitmap = await createImageBitmap(blob);
    this.#context.drawImage(bitmap, 0, 0, this.#canvas.width, this.#canvas.height);
    const pixels = this.#context.getImageData(0, 0, this.#canvas.width, this.#canvas.height);
    for (let index = 0; index < pixels.data.length; index += 4) pixels.data[index + 3] = pixels.data[index];
    this.#context.putImageData(pixels, 0, 0);
    cover(this.#context, "source-in", PAINT);
    this.#changed();
  }

  #remember() {
    this.#undo.push(this.#context.getImageData(0, 0, this.#canvas.width, this.#canvas.height));
    if (this.#undo.length > UNDOS) this.#undo.shift();
  }

  #at(event) {
    const box = this.#canvas.getBoundingClientRect();
    return [
      ((event.clientX - box.left) / box.width) * this.#canvas.width,
      ((event.clientY - box.top) / box.height) * this.#canvas.height,
    ];
  }

  #line([fromX, fromY], [x, y]) {
    const context = this.#context;
    context.globalCompositeOperation = this.erasing ? "destination-out" : "source-over";
    context.strokeStyle = PAINT;
    context.lineWidth = this.brush * Math.max(this.#canvas.width, this.#canvas.height);
    context.lineCap = context.lineJoin = "round";
    context.beginPath();
    context.moveTo(fromX, fromY);
    context.lineTo(x, y);
    context.stroke();
    context.globalCompositeOperation = "source-over";
  }

  #begin(event) {
    if (event.button !== 0) return;
    this.#remember();
    this.#canvas.setPointerCapture(event.pointerId);
    this.#last = this.#at(event);
    this.#line(this.#last, this.#last);
  }

  #move(event) {
    if (!this.#last) return;
    const next = this.#at(event);
    this.#line(this.#last, next);
    this.#last = next;
  }

  #end() {
    if (!this.#last) return;
    this.#last = null;
    this.#changed();
  }

  #key(event) {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const { width, height } = this.#canvas;
    if (event.key in moves) {
      const far = STEP * Math.max(width, height);
      const [x, y] = this.#cursor ?? [width / 2, height / 2];
      const [right, down] = moves[event.key];
      const next = [Math.min(width, Math.max(0, x + right * far)), Math.min(height, Math.max(0, y + down * far))];
      this.#cursor = next;
    } else if (event.key === " ") {
      this.#cursor ??= [width / 2, height / 2];
      this.#remember();
      this.#line(this.#cursor, this.#cursor);
      this.#changed();
    } else {
      return;
    }
    event.preventDefault();
    this.#place();
  }

  /** Show the keyboard's cursor. */
  #place() {
    const mark = this.#canvas.parentElement;
    mark.classList.toggle("aimed", this.#cursor !== null);
    if (!this.#cursor) return;
    mark.style.setProperty("--x", `${(100 * this.#cursor[0]) / this.#canvas.width}%`);
    mark.style.setProperty("--y", `${(100 * this.#cursor[1]) / this.#canvas.height}%`);
  }
}
