// Runs a program of the runner in node: node wasm.mjs PROGRAM.wasm
import { readFileSync, writeSync } from "node:fs";

let memory;
const write = (at, len) => writeSync(1, new Uint8Array(memory.buffer, at, len));
const module = new WebAssembly.Module(readFileSync(process.argv[2]));
const { exports } = new WebAssembly.Instance(module, { env: { write } });
memory = exports.memory;
process.exit(exports.run() ? 0 : 1);
