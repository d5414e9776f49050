// The few calls the pages make, and the words they show. Every answer that is not ok becomes an Error with its title.

export async function call(path, { token, method = "GET", body, headers = {} } = {}) {
  const answer = await fetch(`/api/v1${path}`, {
    method,
    headers: {
      ...(token ? { authorization: `Bearer ${token}` } : {}),
      ...(body === undefined ? {} : { "content-type": "application/json" }),
      ...headers,
    },
    body: body === undefined ? undefined : JSON.stringify(body),
    cache: "no-store",
  });
  const text = await answer.text();
  const json = text ? JSON.parse(text) : null;
  if (!answer.ok) {
    const error = new Error(json?.detail || json?.title || `answer ${answer.status}`);
    error.status = answer.status;
    throw error;
  }
  return json;
}

export const STATUS_WORDS = {
  received: "Order received", accepted: "Order accepted", preparing: "Being prepared", ready: "Ready for pickup",
  picked_up: "On the way to you", delivered: "Delivered", failed: "Could not be delivered",
};
export const STATUS_ORDER = ["received", "accepted", "preparing", "ready", "picked_up", "delivered"];

export function clock(ms) {
  return new Date(ms).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
}

export function ago(ms) {
  const s = Math.max(0, Math.round(ms / 1000));
  return s < 90 ? `${s} s` : s < 5400 ? `${Math.round(s / 60)} min` : `${Math.round(s / 3600)} h`;
}

export function journalWords(entry) {
  if (entry.kind === "status") return STATUS_WORDS[entry.status] + (entry.reason ? `: ${entry.reason}` : "");
  if (entry.kind === "assigned") return entry.driver == null ? "Looking for a driver" : "A driver was assigned";
  return entry.milestone === "arriving" ? "The driver is arriving" : "Five minutes away";
}

/** Older by little is out of order; by much, the server's clock was set back, and the new one is right. */
export function isOlder(position, known) {
  const by = known.event_time - position.event_time;
  return by > 0 && by < 60000;
}

/** How old a position is by the server's clock, and what that means: the page judges by itself when the line is cut. */
export function judge(position, limits, serverNow) {
  if (!position) return { freshness: "unavailable", age: null };
  const age = Math.max(0, serverNow - position.event_time);
  const stands = position.freshness === "live" && serverNow - position.heard < limits.stale;
  if (stands) return { freshness: "live", age };
  if (age >= limits.unavailable) return { freshness: "unavailable", age };
  return { freshness: age >= limits.stale ? "last_seen" : "live", age };
}
