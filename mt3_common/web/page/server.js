// A source of transcriptions: the program that serves this page. Another source needs the same names; it may also have
// decode(file), which returns an AudioBuffer for the player.

export const PROMISE = "They go to the program that serves this page, and nowhere else.";

const token = new URLSearchParams(location.hash.slice(1)).get("token");

function headers(more = {}) {
  return token ? { ...more, Authorization: `Bearer ${token}` } : more;
}

async function checked(response) {
  if (response.ok) return response;
  const text = await response.text();
  let message = text;
  try {
    message = JSON.parse(text).error;
  } catch {
    // a plain sentence
  }
  throw new Error(message || `the server answered ${response.status}`);
}

async function asked(path, options) {
  let response;
  try {
    response = await fetch(path, { cache: "no-store", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("the program that serves this page does not answer: is it still running?");
  }
  return checked(response);
}

// The model and what the source can do.
export async function about() {
  return (await asked("/about", { headers: headers() })).json();
}

// Yields events as they happen, the last of type "end" or "error"; see mt3_common/web/work.py.
export async function* transcribe(file, settings, signal) {
  const query = new URLSearchParams({ name: file.name, ...settings });
  const response = await asked(`/transcriptions?${query}`, {
    method: "POST", body: file, headers: headers({ "Content-Type": "application/octet-stream" }), signal,
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let last = null;
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      last = JSON.parse(line);
      yield last;
    }
  }
  if (!last || !["end", "error"].includes(last.type)) throw new Error("the program that serves this page has ended");
}

// A file of the notes of a result, as a Blob.
export async function save(kind, result) {
  const response = await asked(`/files/${kind}`, {
    method: "POST", body: JSON.stringify(result), headers: headers({ "Content-Type": "application/json" }),
  });
  return response.blob();
}
