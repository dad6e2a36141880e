"use strict";
// Draws the record that lies in the page: `scene` is what scene_page.describe() made. Lengths are the record's; places
// are in the level frame of the first camera (x right, y ahead, z up).
const scene = JSON.parse(document.getElementById("scene").textContent);
const find = (id) => document.getElementById(id);
const ALWAYS = 255;
const count = scene.times.length;
let moment = startMoment();
let followed = null;

function startMoment() {
  const asked = /^#moment=(\d+)$/.exec(location.hash);
  return asked ? Math.min(Number(asked[1]), Math.max(count - 1, 0)) : scene.start;
}

// ---- Vectors and 4x4 matrices (columns first, as WebGL reads them)
const add = (a, b, s = 1) => [a[0] + s * b[0], a[1] + s * b[1], a[2] + s * b[2]];
const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
const scaled = (a, s) => [a[0] * s, a[1] * s, a[2] * s];
const length = (a) => Math.hypot(a[0], a[1], a[2]);
const unit = (a) => scaled(a, 1 / (length(a) || 1));
const UP = [0, 0, 1];

function multiply(a, b) {
  const out = new Array(16).fill(0);
  for (let c = 0; c < 4; c++) for (let r = 0; r < 4; r++) for (let k = 0; k < 4; k++) out[c * 4 + r] += a[k * 4 + r] * b[c * 4 + k];
  return out;
}

function perspective(tangentX, tangentY, near, far) {
  return [1 / tangentX, 0, 0, 0, 0, 1 / tangentY, 0, 0, 0, 0, (far + near) / (near - far), -1, 0, 0, (2 * far * near) / (near - far), 0];
}

function seenFrom(eye, forward, up) {
  const right = unit(cross(forward, up)), top = cross(right, forward);
  return [right[0], top[0], -forward[0], 0, right[1], top[1], -forward[1], 0, right[2], top[2], -forward[2], 0,
    -dot(right, eye), -dot(top, eye), dot(forward, eye), 1];
}

function clipped(matrix, p) {
  return [0, 1, 2, 3].map((r) => matrix[r] * p[0] + matrix[4 + r] * p[1] + matrix[8 + r] * p[2] + matrix[12 + r]);
}

// ---- Data
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16) / 255);
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const pictures = (scene.picture?.jpegs ?? []).map((jpeg) => {
  const image = new Image();
  image.onload = () => image === pictures[moment] && redraw();
  image.src = `data:image/jpeg;base64,${jpeg}`;
  return image;
});
const camera = (t) => {
  const rows = scene.cameras[t];
  if (!rows || rows.includes(null)) return null;
  const [place, right, down, forward] = rows;
  return { place, right, down, forward };
};
const lens = (t) => scene.lens[t] ?? [-0.6, 0.6, -0.4, 0.4];

// ---- Where the viewer stands: on a sphere around what is looked at
const FIELD = Math.tan((36 / 2) * (Math.PI / 180));
let orbit = null;
let through = false;

function firstView() {
  const { middle, radius } = scene.space;
  const places = scene.cameras.map((_, t) => camera(t)?.place).filter(Boolean);
  const mean = places.reduce((sum, p) => add(sum, p, 1 / places.length), [0, 0, 0]);
  const back = places.length ? add(mean, middle, -1) : [0, -1, 0];
  const facing = Math.hypot(back[0], back[1]) > 0.1 * radius ? Math.atan2(back[1], back[0]) : -Math.PI / 2;
  if (scene.points) return { target: [...middle], turn: facing + 0.6, rise: 0.5, distance: radius };
  return { target: [...middle], turn: broadside(places) + 0.2, rise: 0.7, distance: 0.8 * radius };
}

// From where the paths of a scene spread widest: across the direction in which they are longest.
function broadside(cameras) {
  const places = [...cameras, ...scene.objects.flatMap((object) => object.places.filter(Boolean))], { middle } = scene.space;
  const [xx, xy, yy] = places.map((p) => add(p, middle, -1)).reduce(([a, b, c], [x, y]) => [a + x * x, b + x * y, c + y * y], [0, 0, 0]);
  return Math.atan2(2 * xy, xx - yy) / 2 - Math.PI / 2;
}

function standpoint(aspect) {
  const own = through && camera(moment);
  const { radius, middle } = scene.space;
  if (own) {
    const [left, right, top, bottom] = lens(moment);
    const wide = Math.max(right, -left), high = Math.max(bottom, -top), s = Math.max(wide / aspect, high);
    const matrix = multiply(perspective(s * aspect, s, radius * 0.002, radius * 60), seenFrom(own.place, own.forward, scaled(own.down, -1)));
    return { eye: own.place, matrix, tangent: s };
  }
  const { target, turn, rise, distance } = orbit;
  const out = [Math.cos(rise) * Math.cos(turn), Math.cos(rise) * Math.sin(turn), Math.sin(rise)];
  const reach = (distance * 0.88) / (FIELD * Math.min(1, aspect));
  const eye = add(target, out, reach);
  const side = [-Math.sin(turn), Math.cos(turn), 0];
  const far = reach + 40 * radius + length(add(target, middle, -1));
  const matrix = multiply(perspective(FIELD * aspect, FIELD, reach * 0.02, far), seenFrom(eye, scaled(out, -1), cross(out, side)));
  return { eye, matrix, tangent: FIELD, reach, side, top: cross(out, side) };
}

// ---- What is drawn, in WebGL 2
const POINTS = [`#version 300 es
in vec3 place, colour; in float when, wide;
uniform mat4 matrix; uniform vec3 offset; uniform float scale, now, dot, most; out vec3 shade;
void main() {
  gl_Position = matrix * vec4(place * scale + offset, 1.);
  gl_PointSize = clamp(dot * wide / gl_Position.w, 1.5, most);
  if (when < 254.5 && abs(when - now) > .5) gl_Position = vec4(2., 2., 2., 1.);
  shade = colour;
}`, `#version 300 es
precision mediump float; in vec3 shade; out vec4 paint;
void main() { vec2 p = gl_PointCoord - .5; if (dot(p, p) > .25) discard; paint = vec4(shade, 1.); }`];
// A segment becomes a strip of its width in pixels; what lies after the moment is fainter.
const LINES = [`#version 300 es
in vec2 corner; in vec3 from, to; in vec4 colour; in vec2 style;
uniform mat4 matrix; uniform vec2 size; uniform float now; out vec4 shade;
void main() {
  vec4 a = matrix * vec4(from, 1.), b = matrix * vec4(to, 1.);
  float near = 1e-3;
  if (a.w < near && b.w < near) { gl_Position = vec4(2., 2., 2., 1.); return; }
  if (a.w < near) a = mix(a, b, (near - a.w) / (b.w - a.w));
  if (b.w < near) b = mix(b, a, (near - b.w) / (a.w - b.w));
  vec2 along = (b.xy / b.w - a.xy / a.w) * size;
  vec2 across = length(along) > 1e-4 ? normalize(vec2(-along.y, along.x)) : vec2(1., 0.);
  gl_Position = mix(a, b, corner.x);
  gl_Position.xy += across * corner.y * style.x / size * gl_Position.w;
  shade = colour;
  if (style.y > now + .5) shade.a *= .3;
}`, `#version 300 es
precision mediump float; in vec4 shade; out vec4 paint;
void main() { paint = vec4(shade.rgb * shade.a, shade.a); }`];
const FACES = [`#version 300 es
in vec3 place; in vec2 uv; in vec4 colour; uniform mat4 matrix; out vec2 at; out vec4 shade;
void main() { gl_Position = matrix * vec4(place, 1.); at = uv; shade = colour; }`, `#version 300 es
precision mediump float; in vec2 at; in vec4 shade; uniform sampler2D picture; uniform bool textured; out vec4 paint;
void main() { vec3 c = textured ? texture(picture, at).rgb : shade.rgb; paint = vec4(c * shade.a, shade.a); }`];

function program(gl, [vertex, fragment]) {
  const made = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(made, shader);
  }
  gl.linkProgram(made);
  if (!gl.getProgramParameter(made, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(made));
  return made;
}

class Lines {
  data = [];
  add(from, to, colour, alpha = 1, width = 1.5, when = -1) {
    this.data.push(...from, ...to, ...colour, alpha, width, when);
  }
  ring(middle, radius, colour, alpha, width) {
    const at = (k) => add(middle, [radius * Math.cos((k * Math.PI) / 12), radius * Math.sin((k * Math.PI) / 12), 0]);
    for (let k = 0; k < 24; k++) this.add(at(k), at(k + 1), colour, alpha, width);
  }
}

class Faces {
  data = [];
  triangle(a, b, c, colour, alpha) {
    for (const p of [a, b, c]) this.data.push(...p, 0, 0, ...colour, alpha);
  }
  quad(a, b, c, d, colour, alpha) {
    this.triangle(a, b, c, colour, alpha);
    this.triangle(a, c, d, colour, alpha);
  }
}

class Space {
  constructor(canvas) {
    this.canvas = canvas;
    const gl = (this.gl = canvas.getContext("webgl2", { antialias: true }));
    if (!gl) throw new Error("no WebGL 2");
    this.programs = { points: program(gl, POINTS), lines: program(gl, LINES), faces: program(gl, FACES) };
    this.buffer = gl.createBuffer();
    this.corners = this.filled(new Float32Array([0, -1, 0, 1, 1, -1, 1, 1]));
    this.texture = gl.createTexture();
    this.points = scene.points && {
      xyz: this.filled(bytes(scene.points.xyz)), rgb: this.filled(bytes(scene.points.rgb)), when: this.filled(bytes(scene.points.when)),
      wide: this.filled(bytes(scene.points.wide)),
    };
    this.dress();
  }
  filled(data) {
    const { gl } = this, buffer = gl.createBuffer();
    gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
    gl.bufferData(gl.ARRAY_BUFFER, data, gl.STATIC_DRAW);
    return buffer;
  }
  // Colours of the theme, and what depends on no moment: the grid, the tracks, the path of the camera.
  dress() {
    this.ink = rgb(css("--ink"));
    this.bed = rgb(css("--bed"));
    this.accent = rgb(css("--model"));
    this.grid = new Lines();
    drawGrid(this.grid, this.ink);
    this.tracks = new Lines();
    drawTracks(this.tracks, this.ink);
  }
  attribute(name, made, size, type, normalized, stride, offset, divisor = 0) {
    const { gl } = this, at = gl.getAttribLocation(made, name);
    gl.enableVertexAttribArray(at);
    gl.vertexAttribPointer(at, size, type, normalized, stride, offset);
    gl.vertexAttribDivisor(at, divisor);
    return at;
  }
  use(name, matrix) {
    const { gl } = this, made = this.programs[name];
    for (let at = 0; at < 6; at++) {
      gl.disableVertexAttribArray(at);
      gl.vertexAttribDivisor(at, 0);
    }
    gl.useProgram(made);
    gl.uniformMatrix4fv(gl.getUniformLocation(made, "matrix"), false, matrix);
    const now = gl.getUniformLocation(made, "now");
    if (now) gl.uniform1f(now, moment);
    return made;
  }
  drawPoints(view) {
    if (!this.points) return;
    const { gl } = this, made = this.use("points", view.matrix), { offset, scale, widest } = scene.points;
    gl.bindBuffer(gl.ARRAY_BUFFER, this.points.xyz);
    this.attribute("place", made, 3, gl.SHORT, true, 6, 0);
    gl.bindBuffer(gl.ARRAY_BUFFER, this.points.rgb);
    this.attribute("colour", made, 3, gl.UNSIGNED_BYTE, true, 3, 0);
    gl.bindBuffer(gl.ARRAY_BUFFER, this.points.when);
    this.attribute("when", made, 1, gl.UNSIGNED_BYTE, false, 1, 0);
    gl.bindBuffer(gl.ARRAY_BUFFER, this.points.wide);
    this.attribute("wide", made, 1, gl.UNSIGNED_BYTE, true, 1, 0);
    gl.uniform3fv(gl.getUniformLocation(made, "offset"), offset);
    gl.uniform1f(gl.getUniformLocation(made, "scale"), scale);
    gl.uniform1f(gl.getUniformLocation(made, "dot"), (1.5 * widest * this.canvas.height) / (2 * view.tangent));
    gl.uniform1f(gl.getUniformLocation(made, "most"), 12 * devicePixelRatio);
    gl.drawArrays(gl.POINTS, 0, scene.points.count);
  }
  drawLines(lines, view) {
    if (!lines.data.length) return;
    const { gl } = this, made = this.use("lines", view.matrix), ratio = devicePixelRatio;
    gl.uniform2f(gl.getUniformLocation(made, "size"), this.canvas.width / ratio, this.canvas.height / ratio);
    gl.bindBuffer(gl.ARRAY_BUFFER, this.corners);
    this.attribute("corner", made, 2, gl.FLOAT, false, 8, 0);
    gl.bindBuffer(gl.ARRAY_BUFFER, this.buffer);
    gl.bufferData(gl.ARRAY_BUFFER, new Float32Array(lines.data), gl.DYNAMIC_DRAW);
    for (const [name, size, offset] of [["from", 3, 0], ["to", 3, 12], ["colour", 4, 24], ["style", 2, 40]]) {
      this.attribute(name, made, size, gl.FLOAT, false, 48, offset, 1);
    }
    gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, lines.data.length / 12);
  }
  drawFaces(faces, view, image = null) {
    if (!faces.data.length) return;
    const { gl } = this, made = this.use("faces", view.matrix);
    if (image) {
      gl.bindTexture(gl.TEXTURE_2D, this.texture);
      gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, image);
      for (const [name, value] of [["WRAP_S", "CLAMP_TO_EDGE"], ["WRAP_T", "CLAMP_TO_EDGE"], ["MIN_FILTER", "LINEAR"]]) {
        gl.texParameteri(gl.TEXTURE_2D, gl[`TEXTURE_${name}`], gl[value]);
      }
    }
    gl.uniform1i(gl.getUniformLocation(made, "textured"), image ? 1 : 0);
    gl.bindBuffer(gl.ARRAY_BUFFER, this.buffer);
    gl.bufferData(gl.ARRAY_BUFFER, new Float32Array(faces.data), gl.DYNAMIC_DRAW);
    for (const [name, size, offset] of [["place", 3, 0], ["uv", 2, 12], ["colour", 4, 20]]) {
      this.attribute(name, made, size, gl.FLOAT, false, 36, offset);
    }
    gl.drawArrays(gl.TRIANGLES, 0, faces.data.length / 9);
  }
  draw() {
    const { gl, canvas } = this, ratio = devicePixelRatio;
    const size = [Math.round(canvas.clientWidth * ratio), Math.round(canvas.clientHeight * ratio)];
    if (canvas.width !== size[0] || canvas.height !== size[1]) [canvas.width, canvas.height] = size;
    const view = standpoint(size[0] / Math.max(size[1], 1));
    gl.viewport(0, 0, ...size);
    gl.clearColor(...this.bed, 1);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.enable(gl.DEPTH_TEST);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    gl.depthMask(false);
    this.drawLines(this.grid, view);
    gl.depthMask(true);
    this.drawPoints(view);
    const now = { lines: new Lines(), glass: new Faces(), solid: new Faces(), screen: new Faces() };
    drawObjects(now, this.ink);
    if (!through) drawCamera(now, this.ink);
    const image = pictures[moment]?.complete && pictures[moment].naturalWidth ? pictures[moment] : null;
    if (image) this.drawFaces(now.screen, view, image);
    this.drawFaces(now.solid, view);
    gl.depthMask(false);
    this.drawFaces(now.glass, view);
    this.drawLines(this.tracks, view);
    this.drawLines(now.lines, view);
    gl.depthMask(true);
    drawLabels(view, canvas);
  }
}

// ---- What stands in the scene
function niceStep(length) {
  const power = 10 ** Math.floor(Math.log10(length));
  return power * [1, 2, 5, 10].find((k) => k * power >= length * 0.999);
}

function drawGrid(lines, ink) {
  const { middle, radius, ground } = scene.space, step = niceStep(radius / 6), half = 14;
  const x = Math.round(middle[0] / step) * step, y = Math.round(middle[1] / step) * step;
  const fade = (i, j) => 0.2 * Math.max(0, 1 - Math.hypot(i, j) / half) ** 1.3;
  for (let i = -half; i <= half; i++) {
    for (let j = -half; j < half; j++) {
      const alpha = fade(i, j + 0.5);
      if (alpha < 0.005) continue;
      lines.add([x + i * step, y + j * step, ground], [x + i * step, y + (j + 1) * step, ground], ink, alpha, 1);
      lines.add([x + j * step, y + i * step, ground], [x + (j + 1) * step, y + i * step, ground], ink, alpha, 1);
    }
  }
  const length = Number(step.toPrecision(3));
  find("cell").textContent = `grid ${length} ${scene.unit === "m" ? "m" : length === 1 ? "unit" : "units"}`;
}

function drawTracks(lines, ink) {
  const path = (places, colour, width) => {
    for (let t = 1; t < places.length; t++) {
      if (places[t - 1] && places[t]) lines.add(places[t - 1], places[t], colour, 0.95, width, t);
    }
  };
  if (scene.posesKnown) path(scene.cameras.map((_, t) => camera(t)?.place), ink, 2);
  for (const object of scene.objects) path(object.places, rgb(object.colour), 2.5);
}

// Forward, left and up of an object; the scene's axes where it has no front.
function axesOf(object) {
  const forward = object.forward[moment];
  if (!forward || Math.hypot(forward[0], forward[1]) < 1e-3) return [[1, 0, 0], [0, 1, 0], UP];
  const left = unit(cross(UP, forward));
  return [forward, left, cross(forward, left)];
}

function drawObjects(now, ink) {
  const { radius, ground } = scene.space, small = radius * 0.03;
  scene.objects.forEach((object, index) => {
    const place = object.places[moment];
    if (!place) return;
    const colour = rgb(object.colour), axes = axesOf(object), half = object.size ?? [small, small, small];
    const strong = index === followed;
    const at = (i, j, k) => add(add(add(place, axes[0], i * half[0]), axes[1], j * half[1]), axes[2], k * half[2]);
    if (object.size) drawBox(now, at, colour, strong);
    else drawMarker(now, place, small, colour);
    const foot = [place[0], place[1], ground + radius * 0.008], wide = object.size ? Math.max(half[0], half[1]) : small * 1.4;
    if (!object.size) now.lines.add(place, foot, colour, 0.5, 1);
    now.lines.ring(foot, wide * 1.25, colour, strong ? 1 : 0.55, strong ? 2.5 : 1.2);
    if (object.forward[moment]) drawForward(now, place, axes, object.size ? half[0] : small, radius, colour);
  });
}

function drawBox(now, at, colour, strong) {
  const corners = [[-1, -1], [1, -1], [1, 1], [-1, 1]];
  corners.forEach(([i, j], k) => {
    const [m, n] = corners[(k + 1) % 4];
    now.lines.add(at(i, j, -1), at(m, n, -1), colour, 1, strong ? 3 : 2);
    now.lines.add(at(i, j, 1), at(m, n, 1), colour, 1, strong ? 3 : 2);
    now.lines.add(at(i, j, -1), at(i, j, 1), colour, 1, strong ? 3 : 2);
    now.glass.quad(at(i, j, -1), at(m, n, -1), at(m, n, 1), at(i, j, 1), colour, 0.1);
  });
  now.glass.quad(at(-1, -1, 1), at(1, -1, 1), at(1, 1, 1), at(-1, 1, 1), colour, 0.16);
}

// An octahedron, its faces shaded by where they look.
function drawMarker(now, place, size, colour) {
  const tip = (i, j, k) => add(place, [i, j, k], size);
  const around = [[1, 0], [0, 1], [-1, 0], [0, -1]];
  around.forEach(([i, j], k) => {
    const [m, n] = around[(k + 1) % 4];
    now.solid.triangle(tip(i, j, 0), tip(m, n, 0), tip(0, 0, 1), scaled(colour, 1 - 0.08 * k), 1);
    now.solid.triangle(tip(i, j, 0), tip(m, n, 0), tip(0, 0, -1), scaled(colour, 0.7 - 0.06 * k), 1);
  });
}

function drawForward(now, place, axes, half, radius, colour) {
  const head = radius * 0.03, base = add(place, axes[0], half), end = add(base, axes[0], radius * 0.05);
  now.lines.add(place, end, colour, 1, 2.5);
  const wing = (s) => add(end, axes[1], s * head * 0.55);
  now.solid.triangle(wing(1), wing(-1), add(end, axes[0], head), colour, 1);
}

function drawCamera(now, ink) {
  const every = Math.max(1, Math.round(count / 8)), size = scene.space.radius * (pictures.length ? 0.2 : 0.1);
  for (let t = 0; t < count; t++) {
    const own = camera(t);
    if (!own || (t !== moment && (t % every || !scene.posesKnown))) continue;
    const long = t === moment ? size : size * 0.3, [left, right, top, bottom] = lens(t);
    const corner = (x, y) => add(add(add(own.place, own.forward, long), own.right, x * long), own.down, y * long);
    const corners = [corner(left, top), corner(right, top), corner(right, bottom), corner(left, bottom)];
    const alpha = t === moment ? 1 : 0.35, width = t === moment ? 2 : 1;
    corners.forEach((p, k) => {
      now.lines.add(own.place, p, ink, alpha, width);
      now.lines.add(p, corners[(k + 1) % 4], ink, alpha, width);
    });
    if (t !== moment) continue;
    const uv = [[0, 0], [1, 0], [1, 1], [0, 1]];
    for (const k of [0, 1, 2, 0, 2, 3]) now.screen.data.push(...corners[k], ...uv[k], 1, 1, 1, 0.94);
  }
}

// ---- Names beside things; of two that would overlap, the nearer one stays
const tags = scene.space ? ["camera", ...scene.objects.map((object) => object.name)].map((name, i) => {
  const tag = document.createElement("span");
  tag.textContent = name;
  tag.style.borderColor = i ? scene.objects[i - 1].colour : "var(--ink)";
  find("labels").append(tag);
  return tag;
}) : [];

function drawLabels(view, canvas) {
  const wide = canvas.clientWidth, high = canvas.clientHeight, taken = [];
  const places = [through ? null : camera(moment)?.place, ...scene.objects.map((o) => o.places[moment])];
  const lift = (i) => (i ? (scene.objects[i - 1].size?.[2] ?? scene.space.radius * 0.03) : 0);
  const shown = places.map((place, i) => {
    const [x, y, , w] = place ? clipped(view.matrix, add(place, UP, lift(i))) : [0, 0, 0, -1];
    return { i, w, x: ((x / w + 1) / 2) * wide, y: ((1 - y / w) / 2) * high };
  });
  shown.sort((a, b) => (b.i - 1 === followed) - (a.i - 1 === followed) || a.w - b.w);
  for (const { i, w, x, y } of shown) {
    const tag = tags[i], size = [tag.offsetWidth || 60, tag.offsetHeight || 20];
    const box = [Math.round(x - size[0] / 2), Math.round(i ? y - size[1] - 8 : y + 10), ...size];
    const free = w > 0 && x > 0 && x < wide && y > 0 && y < high &&
      taken.every((t) => box[0] > t[0] + t[2] || box[0] + box[2] < t[0] || box[1] > t[1] + t[3] || box[1] + box[3] < t[1]);
    tag.style.visibility = free ? "visible" : "hidden";
    if (!free) continue;
    taken.push(box);
    tag.style.transform = `translate(${box[0]}px, ${box[1]}px)`;
  }
}

// ---- The picture of the moment with boxes and outlines
function drawPicture() {
  const canvas = find("frame");
  if (!canvas) return;
  const ratio = devicePixelRatio, { width, height } = scene.picture, wide = Math.round((canvas.clientWidth || 320) * ratio);
  const high = Math.round((wide * height) / width);
  if (canvas.width !== wide || canvas.height !== high) [canvas.width, canvas.height] = [wide, high];
  const pen = canvas.getContext("2d"), image = pictures[moment];
  pen.fillStyle = css("--bed");
  pen.fillRect(0, 0, wide, high);
  if (image?.complete && image.naturalWidth) pen.drawImage(image, 0, 0, wide, high);
  pen.lineJoin = "round";
  for (const object of scene.objects) drawOutline(pen, object, wide, high, ratio);
  scene.objects.forEach((object, index) => drawBoxOf(pen, object, index === followed, wide, high, ratio));
}

function drawOutline(pen, object, wide, high, ratio) {
  pen.beginPath();
  for (const line of object.outlines[moment]) {
    for (let k = 0; k < line.length; k += 2) pen[k ? "lineTo" : "moveTo"]((line[k] * wide) / 1000, (line[k + 1] * high) / 1000);
    pen.closePath();
  }
  pen.fillStyle = `${object.colour}40`;
  pen.fill();
  pen.strokeStyle = object.colour;
  pen.lineWidth = 1.5 * ratio;
  if (object.outlines[moment].length) pen.stroke();
}

function drawBoxOf(pen, object, strong, wide, high, ratio) {
  const box = object.boxes[moment];
  if (!box) return;
  const [x, y, right, bottom] = [box[0] * wide, box[1] * high, box[2] * wide, box[3] * high];
  pen.strokeStyle = object.colour;
  pen.lineWidth = (strong ? 3 : 1.5) * ratio;
  pen.strokeRect(x, y, right - x, bottom - y);
  if (scene.objects.length > 12 && !strong) return;
  const text = 11 * ratio, name = object.name.length > 24 ? `${object.name.slice(0, 23)}…` : object.name;
  pen.font = `600 ${text}px system-ui, sans-serif`;
  const tall = text * 1.5, long = pen.measureText(name).width + text, left = Math.max(0, Math.min(x, wide - long));
  const top = y > tall ? y - tall : Math.min(bottom, high - tall);
  pen.fillStyle = object.colour;
  pen.fillRect(left, top, long, tall);
  pen.fillStyle = "#fff";
  pen.fillText(name, left + text / 2, top + text * 1.1);
}

// ---- The list of objects
const SVG = "http://www.w3.org/2000/svg";
const rows = [...document.querySelectorAll("#objects button")].map((button, index) => {
  const object = scene.objects[index], bar = button.querySelector(".seen");
  object.boxes.forEach((box, t) => {
    if (box || object.places[t]) bar.append(strip(t, 1.02, object.colour));
  });
  const now = strip(0, Math.max(0.25, count / 90), "");
  now.setAttribute("class", "now");
  bar.append(now);
  if (scene.space) button.addEventListener("click", () => follow(followed === index ? null : index));
  return { button, now, away: button.querySelector(".away") };
});

function strip(at, width, colour) {
  const rect = document.createElementNS(SVG, "rect");
  for (const [name, value] of Object.entries({ x: at, y: 0, width, height: 1, fill: colour })) rect.setAttribute(name, value);
  return rect;
}

function drawList() {
  const eye = scene.posesKnown ? camera(moment)?.place : [0, 0, 0];
  rows.forEach(({ button, now, away }, index) => {
    const { places, boxes } = scene.objects[index], place = places[moment];
    const far = place && eye ? length(add(place, eye, -1)) : null;
    away.textContent = far !== null ? `${far.toFixed(1)} ${scene.unit === "m" ? "m" : ""} away`.replace("  ", " ") : boxes[moment] ? "in the picture" : "not seen";
    now.setAttribute("x", moment);
    button.setAttribute("aria-pressed", String(index === followed));
  });
}

// ---- Time
const slider = find("moment");
let playing = null;

function show(t) {
  moment = t;
  if (slider) slider.value = t;
  redraw();
}

function play(on) {
  clearTimeout(playing);
  playing = null;
  find("play-shape").setAttribute("d", on ? "M3.5 2.5h3.2v11H3.5zM9.3 2.5h3.2v11H9.3z" : "M4 2.5v11l9-5.5z");
  find("play").setAttribute("aria-label", on ? "Pause" : "Play");
  if (!on || count < 2) return;
  const next = (moment + 1) % count;
  const pause = next ? (scene.times[next] - scene.times[moment]) * 1000 : 900;
  playing = setTimeout(() => { show(next); play(true); }, Math.min(1000, Math.max(40, pause)));
}

function follow(index) {
  followed = index;
  through = false;
  redraw();
}

let waiting = false;
function redraw() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; draw(); });
}

function draw() {
  if (!count) return;
  const place = followed !== null ? scene.objects[followed].places[moment] : null;
  if (place && orbit) orbit.target = [...place];
  if (space) space.draw();
  drawPicture();
  drawList();
  find("clock").textContent = `${scene.times[moment].toFixed(2)} s of ${scene.times[count - 1].toFixed(2)} s`;
  find("through")?.setAttribute("aria-pressed", String(through));
}

// ---- Hands: mouse, touch and keyboard
function turn(dx, dy) {
  through = false;
  orbit.turn -= dx * 0.007;
  orbit.rise = Math.min(1.569, Math.max(-0.4, orbit.rise + dy * 0.007));
  redraw();
}

function move(dx, dy) {
  through = false;
  followed = null;
  const { clientWidth, clientHeight } = space.canvas;
  const { reach, side, top } = standpoint(clientWidth / clientHeight), s = (2 * FIELD * reach) / clientHeight;
  orbit.target = add(add(orbit.target, side, -dx * s), top, dy * s);
  redraw();
}

function zoom(factor) {
  through = false;
  const { radius } = scene.space;
  orbit.distance = Math.min(20 * radius, Math.max(0.02 * radius, orbit.distance * factor));
  redraw();
}

function look(change) {
  through = false;
  followed = null;
  orbit = { ...firstView(), ...change };
  redraw();
}

function lookThrough() {
  through = !through;
  followed = null;
  redraw();
}

function listen(canvas) {
  const held = new Map();
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    held.set(event.pointerId, event);
  });
  canvas.addEventListener("pointermove", (event) => {
    const before = held.get(event.pointerId);
    if (!before) return;
    const dx = event.clientX - before.clientX, dy = event.clientY - before.clientY;
    if (held.size === 2) {
      const [other] = [...held].filter(([id]) => id !== event.pointerId).map(([, e]) => e);
      const apart = (e) => Math.hypot(e.clientX - other.clientX, e.clientY - other.clientY) || 1;
      zoom(apart(before) / apart(event));
      move(dx / 2, dy / 2);
    } else if (event.buttons & 2 || event.shiftKey) move(dx, dy);
    else turn(dx, dy);
    held.set(event.pointerId, event);
  });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, (event) => held.delete(event.pointerId));
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener("wheel", (event) => { event.preventDefault(); zoom(Math.exp(event.deltaY * 0.0012)); }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const arrow = { ArrowLeft: [-24, 0], ArrowRight: [24, 0], ArrowUp: [0, -24], ArrowDown: [0, 24] }[event.key];
    if (arrow) event.shiftKey ? move(...arrow) : turn(...arrow);
    else if (event.key === "+" || event.key === "=") zoom(0.88);
    else if (event.key === "-") zoom(1.14);
    else return;
    event.preventDefault();
  });
  find("home").addEventListener("click", () => look({}));
  find("above").addEventListener("click", () => look({ rise: 1.569, turn: -Math.PI / 2 }));
  find("through").addEventListener("click", lookThrough);
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || !count) return;
  const step = { ",": -1, ".": 1 }[event.key];
  if (step) show((moment + step + count) % count);
  else if (event.key === " " && event.target.tagName !== "BUTTON") play(!playing);
  else if (event.key === "Home" && orbit && event.target !== slider) look({});
  else if (event.key === "t" && orbit) find("above").click();
  else if (event.key === "c" && orbit) lookThrough();
  else return;
  event.preventDefault();
});

// ---- Begin
let space = null;
if (scene.space) {
  orbit = firstView();
  try {
    space = new Space(find("space"));
    listen(space.canvas);
  } catch (error) {
    find("cell").textContent = `This browser cannot draw in 3D (${error.message}); the picture and the facts are all there is.`;
  }
}
if (slider) {
  slider.addEventListener("input", () => { play(false); show(Number(slider.value)); });
  find("play").addEventListener("click", () => play(!playing));
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { space?.dress(); redraw(); });
const sizes = new ResizeObserver(redraw);
for (const id of ["stage", "picture"]) if (find(id)) sizes.observe(find(id));
show(moment);
