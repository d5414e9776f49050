// A stream of frames that comes back by itself: WebSocket first, Server-Sent Events where sockets are blocked. On
// return it says the last journal number it has, and so gets exactly what it missed. It stays away where coming back
// would bring nothing: the delivery is finished, or the token opens nothing.

/** A close with one of these is the last word (docs/doors.md); 1000 says that all is told. */
const FINAL_CODES = new Set([1000, 4400, 4401, 4404]);
/** An answer with one of these in place of events is the last word too; 204 says that all is told. */
const FINAL_STATUSES = new Set([204, 400, 401, 403, 404]);
/** Sockets that never opened are taken for blocked after so many. */
const FAILURES_BEFORE_EVENTS = 3;

export class Stream {
  #path; #token; #onFrame; #onLine; #socket = null; #events = null; #failures = 0; #opened = false; #timer = 0; #closed = false;
  last = 0; view = "";

  constructor(path, token, onFrame, onLine) {
    this.#path = path; this.#token = token; this.#onFrame = onFrame; this.#onLine = onLine;
    this.#open();
    addEventListener("online", () => this.#again(0));
    document.addEventListener("visibilitychange", () => { if (!document.hidden && !this.#isOpen()) this.#again(0); });
  }

  close() { this.#closed = true; clearTimeout(this.#timer); this.#socket?.close(1000); this.#events?.close(); }

  send(value) { if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(value)); }

  #isOpen() { return this.#socket?.readyState === WebSocket.OPEN || this.#events?.readyState === EventSource.OPEN; }

  #open() {
    if (this.#closed) return;
    if (this.#failures >= FAILURES_BEFORE_EVENTS && !this.#opened) return this.#openEvents();
    const url = new URL(`/api/v1${this.#path}/connect`, location.href);
    url.protocol = url.protocol.replace("http", "ws");
    this.#sayWhatIsKnown(url);
    const socket = new WebSocket(url, [`wayfix.token.${this.#token}`]);
    this.#socket = socket;
    socket.onopen = () => { this.#opened = true; this.#failures = 0; this.#onLine(true); };
    socket.onmessage = (message) => this.#take(message.data);
    socket.onclose = ({ code }) => {
      if (this.#socket !== socket || this.#closed) return;
      if (FINAL_CODES.has(code)) {
        this.close();
        return this.#onLine(code === 1000);
      }
      this.#onLine(false);
      this.#againLater();
    };
  }

  #openEvents() {
    const url = new URL(`/api/v1${this.#path}/events`, location.href);
    url.searchParams.set("token", this.#token);
    this.#sayWhatIsKnown(url);
    this.#events?.close();
    const events = new EventSource(url);
    this.#events = events;
    events.onopen = () => { this.#failures = FAILURES_BEFORE_EVENTS; this.#onLine(true); };
    events.onerror = () => {
      if (this.#events !== events || this.#closed) return;
      this.#onLine(false);
      // A stream that broke off the browser opens again by itself; one that was refused (429, 503) it gives up for good.
      if (events.readyState === EventSource.CLOSED) this.#afterRefusal(url);
    };
    events.onmessage = (message) => this.#take(message.data);
    for (const type of ["snapshot", "position", "eta", "status", "stale", "redirect", "driver", "delivery", "left"]) {
      events.addEventListener(type, (message) => this.#take(message.data));
    }
  }

  /** An EventSource does not say with which status it was refused, so the same is asked once more. */
  async #afterRefusal(url) {
    const asking = new AbortController();
    const answer = await fetch(url, { signal: asking.signal, cache: "no-store" }).catch(() => null);
    asking.abort();
    if (this.#closed) return;
    if (FINAL_STATUSES.has(answer?.status)) {
      this.close();
      return this.#onLine(answer.status === 204);
    }
    this.#againLater();
  }

  #againLater() {
    this.#failures += 1;
    this.#again(Math.min(15000, 400 * 2 ** Math.min(6, this.#failures)) * (0.5 + Math.random() / 2));
  }

  #sayWhatIsKnown(url) {
    if (this.last) url.searchParams.set("last", this.last);
    if (this.view) url.searchParams.set("view", this.view);
  }

  #take(text) {
    const frame = JSON.parse(text);
    if (frame.type === "redirect") {
      this.#socket?.close(1000);
      this.#socket = null;
      this.#onLine(false);
      return this.#again(frame.retry_after_ms || 1000);
    }
    this.last = Math.max(this.last, frame.last_number || 0, frame.type === "status" ? frame.number : 0);
    this.view = frame.view || this.view;
    this.#onFrame(frame);
  }

  #again(wait) {
    if (this.#closed || this.#isOpen() || this.#socket?.readyState === WebSocket.CONNECTING) return;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#open(), wait);
  }
}
