const { createHash } = require("node:crypto");
const digest = createHash("sha256").update("hello").digest("hex");
console.log(digest.startsWith("2cf24dba") ? "hello from node" : digest);
