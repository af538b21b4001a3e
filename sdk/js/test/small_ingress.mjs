/** A small WebSocket server for tests: text frames of up to 64 KiB, as the ingress speaks. */

import { createHash } from "node:crypto";
import { createServer } from "node:http";

const GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/** Serve; `greet(socket, hello, count)` is told of each connection when its `hello` has come. */
export async function ingress(greet, test) {
  const server = createServer();
  const sockets = [];
  server.on("upgrade", (req, raw) => {
    const accept = createHash("sha1").update(req.headers["sec-websocket-key"] + GUID).digest("base64");
    raw.write("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
      + `Sec-WebSocket-Accept: ${accept}\r\n\r\n`);
    const socket = new Socket(raw);
    sockets.push(socket);
    socket.next().then((hello) => greet(socket, hello, sockets.length), () => undefined);
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  test.after(() => {
    for (const socket of sockets) socket.cut();
    return new Promise((resolve) => server.close(resolve));
  });
  return `ws://127.0.0.1:${server.address().port}/ws`;
}

/** One device as its server sees it. */
class Socket {
  #raw;
  #rest = Buffer.alloc(0);
  #messages = [];
  #waiting = [];

  constructor(raw) {
    this.#raw = raw;
    raw.on("data", (part) => this.#take(part));
    raw.on("error", () => undefined);
  }

  /** Send a message. */
  send(message) {
    const body = Buffer.from(JSON.stringify(message));
    const size = Buffer.alloc(2);
    size.writeUInt16BE(body.length);
    const head = body.length < 126 ? [0x81, body.length] : [0x81, 126, ...size];
    this.#raw.write(Buffer.concat([Buffer.from(head), body]));
  }

  /** Return the next message. */
  next() {
    if (this.#messages.length) return Promise.resolve(this.#messages.shift());
    return new Promise((resolve) => this.#waiting.push(resolve));
  }

  /** Close, and say why. */
  close(code, reason) {
    this.#raw.write(Buffer.concat([
      Buffer.from([0x88, 2 + reason.length, code >> 8, code & 0xff]), Buffer.from(reason),
    ]));
  }

  /** Break the connection. */
  cut() {
    this.#raw.destroy();
  }

  #take(part) {
    this.#rest = Buffer.concat([this.#rest, part]);
    for (let frame; (frame = this.#frame()); ) {
      if (frame.code === 8) this.#raw.end(Buffer.from([0x88, 0]));
      if (frame.code !== 1) continue;
      const message = JSON.parse(frame.body);
      const waiting = this.#waiting.shift();
      if (waiting) waiting(message);
      else this.#messages.push(message);
    }
  }

  /** Cut the next whole frame off, if there is one; clients mask theirs. */
  #frame() {
    const short = this.#rest[1] & 0x7f;
    const head = short === 126 ? 4 : 2;
    if (this.#rest.length < head + 4) return null;
    const size = short === 126 ? this.#rest.readUInt16BE(2) : short;
    if (this.#rest.length < head + 4 + size) return null;
    const mask = this.#rest.subarray(head, head + 4);
    const body = this.#rest.subarray(head + 4, head + 4 + size).map((byte, n) => byte ^ mask[n % 4]);
    const code = this.#rest[0] & 0x0f;
    this.#rest = this.#rest.subarray(head + 4 + size);
    return { code, body: body.toString() };
  }
}
