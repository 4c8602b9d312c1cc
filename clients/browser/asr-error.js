/** What went wrong: `code` for programs, `message` for people, `hint` for what to do about it. */
export class AsrError extends Error {
  name = "AsrError";

  constructor(code, message, hint = "", options = undefined) {
    super(message, options);
    this.code = code;
    this.hint = hint;
  }
}
