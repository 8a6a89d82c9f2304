/** Messages on the wire: JSON in text, MessagePack in binary. */

import { Decoder, Encoder, ExtensionCodec } from "@msgpack/msgpack";

const TIMESTAMP = -1;

const extensions = new ExtensionCodec();
extensions.register({ type: TIMESTAMP, encode: () => null, decode: decodeTime });
const decoder = new Decoder({ extensionCodec: extensions });
const encoder = new Encoder({ ignoreUndefined: true });
const bytesOf = new TextEncoder();

/** The WebSocket subprotocol of an encoding. */
export const subprotocolOf = (encoding) => `tickcast.v1.${encoding}`;

/**
 * @param {"json"|"msgpack"} encoding
 * @returns {string|Uint8Array}
 */
export function encode(message, encoding) {
  return encoding === "json" ? JSON.stringify(message) : encoder.encode(message);
}

/**
 * Decode times as text in both encodings. Integers beyond 2^53, such as some trade ids, lose their last
 * digits in either encoding.
 *
 * @param {string|ArrayBuffer} data of a message event, whose `binaryType` is `arraybuffer`
 * @returns {object[]}
 */
export function decode(data) {
  return typeof data === "string" ? JSON.parse(data) : decoder.decode(new Uint8Array(data));
}

/** The size of a text or a buffer in bytes. Servers write ASCII almost everywhere. */
export function sizeOf(data) {
  return typeof data === "string" ? data.length : data.byteLength;
}

/** @returns {number} the size of one of our messages on the wire */
export function encodedSize(message, encoding) {
  const data = encode(message, encoding);
  return typeof data === "string" ? bytesOf.encode(data).length : data.length;
}

let lastSeconds = NaN;
let lastText = "";

/** The timestamp extension as RFC 3339 in UTC, with as many digits as it needs. */
function decodeTime(data) {
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  let seconds = view.getUint32(0);
  let nanoseconds = 0;
  if (data.length === 8) {
    // 30 bits of nanoseconds, 34 of seconds.
    nanoseconds = seconds >>> 2;
    seconds = (seconds & 3) * 2 ** 32 + view.getUint32(4);
  } else if (data.length === 12) {
    nanoseconds = seconds;
    seconds = Number(view.getBigInt64(4));
  }
  if (seconds !== lastSeconds) {
    lastSeconds = seconds;
    lastText = new Date(seconds * 1000).toISOString().slice(0, 19);
  }
  if (!nanoseconds) return `${lastText}Z`;
  return `${lastText}.${String(nanoseconds).padStart(9, "0").replace(/0+$/, "")}Z`;
}
