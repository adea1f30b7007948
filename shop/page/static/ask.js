// Requests to this page's own origin.

/** What went wrong, in words for a person. */
export class Refused extends Error {}

/** POST; the answer's JSON, or null. Throws Refused. */
export async function post(path, body = undefined, headers = {}) {
  let answer;
  try {
    answer = await fetch(path, {
      method: "POST",
      headers: { "content-type": "application/json", ...headers },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch {
    throw new Refused("The shop does not answer. Is it still running?");
  }
  const said = answer.status === 204 ? null : await answer.json();
  if (!answer.ok) throw new Refused(said.detail);
  return said;
}
