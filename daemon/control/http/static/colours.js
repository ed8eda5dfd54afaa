/**
 * A colour map in which equal steps look equal: lightness rises evenly in Oklab (B. Ottosson, 2020), so that it also reads
 * in grey and for the colour-blind. Dark is quiet, bright is loud.
 */

// Lightness, chroma, hue in degrees.
const ANCHORS = [
  [0.13, 0.03, 280],
  [0.3, 0.11, 285],
  [0.47, 0.15, 325],
  [0.64, 0.16, 15],
  [0.81, 0.14, 65],
  [0.98, 0.06, 105],
];
export const COLOUR_COUNT = 256;

/** 256 colours of four bytes each: red, green, blue, opaque. */
export const COLOURS = makeColours();

function makeColours() {
  const colours = new Uint8ClampedArray(4 * COLOUR_COUNT);
  for (let index = 0; index < COLOUR_COUNT; index += 1) {
    const place = (index / (COLOUR_COUNT - 1)) * (ANCHORS.length - 1);
    const lower = Math.min(Math.floor(place), ANCHORS.length - 2);
    const [from, to] = [oklab(ANCHORS[lower]), oklab(ANCHORS[lower + 1])];
    const mixed = from.map((value, axis) => value + (to[axis] - value) * (place - lower));
    colours.set([...srgb(mixed), 255], 4 * index);
  }
  return colours;
}

function oklab([lightness, chroma, hue]) {
  const angle = (hue * Math.PI) / 180;
  return [lightness, chroma * Math.cos(angle), chroma * Math.sin(angle)];
}

function srgb([lightness, a, b]) {
  const long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const short = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3;
  return [
    4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
    -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
    -0.0041960863 * long - 0.7034186147 * medium + 1.707614701 * short,
  ].map((linear) => 255 * (linear <= 0.0031308 ? 12.92 * linear : 1.055 * linear ** (1 / 2.4) - 0.055));
}
