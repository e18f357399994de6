// Classify a picture in the browser. The folder holds vit.onnx and model.json, which export_vit.py wrote, and
// onnxruntime-web.

const $ = (id) => document.getElementById(id);
const SCALE = 10; // pixels on the page for one that the model sees
let ort, model, session, shown;
let latest; // the file that was given last: an earlier one that took longer is not shown

async function load() {
  ort = await import("./ort.wasm.bundle.min.mjs"); // here, so that the page says what is missing
  const answer = await fetch("model.json");
  if (!answer.ok) throw new Error(`model.json: ${answer.status}`);
  model = await answer.json(); // class_names, img_size
  ort.env.wasm.numThreads = 1; // more need response headers that a plain server does not send
  session = await ort.InferenceSession.create("vit.onnx");
  say("");
}

function say(text) {
  $("status").textContent = text;
}

// Pillow's bilinear resampling, as evaluate_vit.py has it: along a side, the first source pixel of each new one and
// the weights of this and the following ones.
function sources(length, size) {
  const scale = length / size;
  const reach = Math.max(scale, 1);
  return Array.from({ length: size }, (_, i) => {
    const center = (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - reach + 0.5));
    const end = Math.min(length, Math.trunc(center + reach + 0.5));
    const weights = [];
    for (let x = first; x < end; x++) weights.push(Math.max(0, 1 - Math.abs((x + 0.5 - center) / reach)));
    const sum = weights.reduce((a, b) => a + b);
    return [first, weights.map((weight) => weight / sum)];
  });
}

// RGBA bytes of any size to (3, size, size) numbers from 0 to 255, the width first; bytes in between, as in Pillow.
function resize({ data, width, height }, size) {
  const columns = sources(width, size);
  const rows = sources(height, size);
  const narrow = new Uint8ClampedArray(3 * height * size); // which rounds
  const result = new Uint8ClampedArray(3 * size * size);
  for (let channel = 0; channel < 3; channel++) {
    for (let y = 0; y < height; y++) {
      columns.forEach(([first, weights], x) => {
        let sum = 0;
        weights.forEach((weight, i) => (sum += weight * data[4 * (y * width + first + i) + channel]));
        narrow[(channel * height + y) * size + x] = sum;
      });
    }
    rows.forEach(([first, weights], y) => {
      for (let x = 0; x < size; x++) {
        let sum = 0;
        weights.forEach((weight, i) => (sum += weight * narrow[(channel * height + first + i) * size + x]));
        result[(channel * size + y) * size + x] = sum;
      }
    });
  }
  return result;
}

async function pixelsOf(file) {
  const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white"; // shows through where a picture is transparent, as in training
  context.fillRect(0, 0, bitmap.width, bitmap.height);
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, bitmap.width, bitmap.height);
}

function refuse(text) {
  $("found").hidden = true;
  say(text);
}

async function classify(file) {
  try {
    await ready;
    say(`Looking at ${file.name}`);
    const pixels = resize(await pixelsOf(file), model.img_size);
    const images = new ort.Tensor("float32", Float32Array.from(pixels, (p) => p / 255), [1, 3, model.img_size, model.img_size]);
    const { logits, attention } = await session.run({ images });
    if (file !== latest) return;
    show(pixels, softmax(logits.data), attention);
    say(file.name);
  } catch (error) {
    if (file === latest) refuse(`${file.name} can't be classified: ${error.message}`);
  }
}

function softmax(logits) {
  const largest = Math.max(...logits);
  const powers = Array.from(logits, (logit) => Math.exp(logit - largest));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map((power) => power / sum);
}

function show(pixels, probabilities, attention) {
  const likeliest = probabilities.map((_, i) => i).sort((a, b) => probabilities[b] - probabilities[a]).slice(0, 5);
  $("classes").tBodies[0].replaceChildren(
    ...likeliest.map((index) => {
      const row = document.createElement("tr");
      for (let i = 0; i < 3; i++) row.insertCell();
      row.cells[0].textContent = model.class_names[index];
      const bar = document.createElement("progress");
      bar.value = probabilities[index];
      row.cells[1].append(bar);
      row.cells[2].textContent = `${(100 * probabilities[index]).toFixed(1)} %`;
      return row;
    }),
  );
  shown = { pixels, attention };
  draw();
  $("found").hidden = false;
}

// The picture as the model sees it; with attention, in grey under orange patches.
function draw() {
  const size = model.img_size;
  const { pixels, attention } = shown;
  const canvas = $("picture");
  canvas.width = canvas.height = size * SCALE;
  const context = canvas.getContext("2d");
  const looks = $("attention").checked;
  for (let i = 0; i < size * size; i++) {
    let colour = [pixels[i], pixels[size * size + i], pixels[2 * size * size + i]];
    if (looks) colour = Array(3).fill(0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2]);
    context.fillStyle = `rgb(${colour.join(" ")})`;
    context.fillRect((i % size) * SCALE, Math.trunc(i / size) * SCALE, SCALE, SCALE);
  }
  if (!looks) return;
  const [side] = attention.dims;
  const patch = (size * SCALE) / side;
  const most = Math.max(...attention.data) || 1; // each map has its own scale, from 0
  attention.data.forEach((weight, i) => {
    context.fillStyle = `rgb(255 120 0 / ${(0.8 * weight) / most})`;
    context.fillRect((i % side) * patch, Math.trunc(i / side) * patch, patch, patch);
  });
}

const firstPicture = (items) => [...items].find((file) => file.type.startsWith("image/"));
const classifyFirst = (items) => {
  latest = firstPicture(items);
  if (latest) classify(latest);
  else refuse("That is not a picture.");
};
$("file").addEventListener("change", () => $("file").files.length && classifyFirst($("file").files));
$("attention").addEventListener("change", draw);
addEventListener("paste", (event) => classifyFirst(event.clipboardData.files));
addEventListener("dragover", (event) => {
  event.preventDefault();
  $("drop").classList.add("over");
});
addEventListener("dragleave", () => $("drop").classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  classifyFirst(event.dataTransfer.files);
});
const ready = load();
ready.catch((error) => say(`The model can't be loaded: ${error.message}`));
