// The benchmark's work on the OpenAI Agents SDK for JavaScript: each run one call of run(), kept in memory.
//
// The same work, flags and output as the Python programs beside it, whose common.py describes them; that file
// cannot be shared, so what it does is done here once more. It must not be tuned beyond what the SDK's own
// documentation says, nor held back: it is here to be compared with. The SDK brings no session that lasts, so
// nothing of a run is on disk but what its tool wrote. AGENTD_PEERS_NODE names the directory that holds the
// node_modules with the SDK, which is not in the tree.
import fs from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { parseArgs } from 'node:util';

// Longest that the requests of mode `waiting` may take to be under way.
const PATIENCE_MS = 60_000;

const PEER = 'openai-agents (JavaScript)';
const TASK = 'Write the file, step by step.';
const LAST_WORD = 'done';

const options = flags();
const { sdk, OpenAI, version } = load();
const carryOut = setUp();
if (options.mode === 'waiting') {
  await wait();
} else {
  await carryOutAll();
}

function flags() {
  const text = { type: 'string' };
  const wanted = { 'base-url': text, runs: text, steps: text, directory: text, mode: text };
  const { values } = parseArgs({ options: wanted });
  const missing = Object.keys(wanted).filter((name) => values[name] === undefined);
  if (missing.length > 0) fail(`missing: --${missing.join(' --')}`);
  if (!['steps', 'waiting'].includes(values.mode)) fail(`--mode is steps or waiting, not ${values.mode}`);
  return { ...values, baseUrl: values['base-url'], runs: Number(values.runs), steps: Number(values.steps) };
}

// The SDK and its client of the model server. Both by require, for an import looks only beside and above this
// file; and both the same way, or the client would be loaded twice.
function load() {
  const holder = process.env.AGENTD_PEERS_NODE;
  if (!holder) fail('AGENTD_PEERS_NODE names no directory with node_modules');
  const require = createRequire(path.resolve(holder, 'package.json'));
  const about = path.resolve(holder, 'node_modules/@openai/agents/package.json');
  const { version } = JSON.parse(fs.readFileSync(about, 'utf8'));
  return { sdk: require('@openai/agents'), OpenAI: require('openai').OpenAI, version };
}

// What all runs share: the client, the agent, its tool and the runner. Gives what carries out one run.
function setUp() {
  // A trace would be sent to another server than the one that is measured with.
  sdk.setTracingDisabled(true);
  // Retries would hide a failure. Node's own fetch opens as many connections as there are requests.
  const client = new OpenAI({ baseURL: options.baseUrl, apiKey: 'none', maxRetries: 0 });
  const writeFile = sdk.tool({
    name: 'write_file',
    description: 'Writes a file.',
    strict: true,
    parameters: {
      type: 'object',
      properties: { path: { type: 'string' }, content: { type: 'string' } },
      required: ['path', 'content'],
      additionalProperties: false,
    },
    execute({ path: name, content }, { context: place }) {
      fs.writeFileSync(path.join(place.directory, name), content);
      place.written += 1;
      return 'written';
    },
  });
  const agent = new sdk.Agent({
    name: 'writer',
    instructions: 'You write files.',
    model: new sdk.OpenAIResponsesModel(client, 'm'),
    // The server counts the outputs in the request, so the whole conversation is sent each time.
    modelSettings: { store: false },
    tools: [writeFile],
  });
  const runner = new sdk.Runner();
  return async (place) => {
    const result = await runner.run(agent, TASK, { context: place, maxTurns: options.steps + 2 });
    return result.finalOutput;
  };
}

function makePlace(number) {
  const directory = path.join(options.directory, `run-${number}`);
  fs.mkdirSync(directory);
  return { directory, written: 0 };
}

function makePlaces() {
  return Array.from({ length: options.runs }, (_, number) => makePlace(number));
}

async function carryOutAll() {
  const [first, places] = [[makePlace('first')], makePlaces()];
  // The first run loads what is loaded late and has the code compiled: no cost of a step.
  check(await lastWords(first), first);
  const [started, used] = [performance.now(), process.cpuUsage()];
  const words = await lastWords(places);
  const [wall, cpu] = [performance.now() - started, process.cpuUsage(used)];
  check(words, places);
  print({
    keeps: 'conversation in memory, nothing on disk',
    steps: places.reduce((sum, place) => sum + place.written, 0),
    wall_seconds: wall / 1e3,
    cpu_seconds: (cpu.user + cpu.system) / 1e6,
  });
}

// Carries out a run in each place, all at once. Gives what each ended with: a word or an error.
function lastWords(places) {
  return Promise.all(places.map((place) => carryOut(place).catch((error) => error)));
}

function check(words, places) {
  places.forEach(({ directory, written }, n) => {
    const name = path.basename(directory);
    if (words[n] !== LAST_WORD) fail(`${name} ended with '${words[n]}', not with '${LAST_WORD}'`);
    if (written !== options.steps) fail(`${name} wrote ${written} times, not ${options.steps}`);
    if (options.steps > 0 && fs.readdirSync(directory).length === 0) fail(`${name} left no file`);
  });
}

// Prints what the process holds before the runs and while all of them wait, then ends it: to end the runs in
// order would take an answer that never comes.
async function wait() {
  const places = makePlaces();
  // One run waits already, for what the first loads late is no cost of each.
  startToWait(makePlace('first'));
  await allUnderWay(1);
  const before = residentKib();
  places.forEach(startToWait);
  await allUnderWay(1 + places.length);
  print({ runs: options.runs, resident_kib_before: before, resident_kib_after: residentKib() });
  process.exit(0);
}

function startToWait(place) {
  carryOut(place).then(
    (word) => fail(`a run that was to wait has ended: ${word}`),
    (error) => fail(`a run that was to wait has ended: ${error}`),
  );
}

// Returns once each of so many runs has a connection and the process has nothing left to do but wait.
async function allUnderWay(runs) {
  const deadline = performance.now() + PATIENCE_MS;
  for (;;) {
    const started = process.cpuUsage();
    await pause(200);
    const { user, system } = process.cpuUsage(started);
    const connected = connections();
    // A connection says that a request is about to be sent; idleness, that all have been.
    if (connected >= runs && user + system < 20_000) return;
    if (performance.now() > deadline) {
      fail(`${connected} of ${runs} runs had a connection after ${PATIENCE_MS / 1000} seconds`);
    }
  }
}

// How many connections this process has established to the server's port.
function connections() {
  const port = Number(new URL(options.baseUrl).port);
  const own = new Set();
  for (const name of fs.readdirSync('/proc/self/fd')) {
    try {
      own.add(fs.readlinkSync(`/proc/self/fd/${name}`));
    } catch {
      // The descriptor of the listing itself.
    }
  }
  const rows = ['tcp', 'tcp6'].flatMap((table) => {
    const name = `/proc/net/${table}`;
    return fs.existsSync(name) ? fs.readFileSync(name, 'utf8').trimEnd().split('\n').slice(1) : [];
  });
  // The columns: number, local address, remote address, state (01 is established), …, inode.
  const columns = rows.map((row) => row.trim().split(/\s+/));
  const established = ([, , remote, state, , , , , , inode]) =>
    parseInt(remote.split(':').at(-1), 16) === port && state === '01' && own.has(`socket:[${inode}]`);
  return columns.filter(established).length;
}

function residentKib() {
  return Number(/^VmRSS:\s+(\d+)/m.exec(fs.readFileSync('/proc/self/status', 'utf8'))[1]);
}

function print(figures) {
  process.stdout.write(`${JSON.stringify({ peer: PEER, version, ...figures })}\n`);
}

function fail(sentence) {
  process.stderr.write(`${sentence}\n`);
  process.exit(1);
}
