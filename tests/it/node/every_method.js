// Calls every method of every service of agentd.v1 from Node, with the proto files loaded as they are.
//
// The services are read from the loaded definitions: a method without an exercise in EXERCISES fails the
// script before anything is called, and so does an exercise whose method is gone. It prints one line of
// JSON: the methods that were called. See tests/it/clients.rs. The packages are those of the real parts:
// NODE_PATH names them.
'use strict';

const assert = require('node:assert/strict');
const fs = require('node:fs');
const path = require('node:path');
const { parseArgs } = require('node:util');
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');

// Longest that any one call may take; reaching it is an error, not a measurement.
const PATIENCE_MS = 60_000;

// In the order in which they are done: what needs a run comes after what makes one.
const EXERCISES = {
  async 'RunService/CreateRun'(daemon) {
    const wish = { task: 'write it', agent: 'executor', workspace: daemon.workspace, request_id: 'node' };
    wish.labels = { a: 'b' };
    const { run } = await daemon.call('RunService/CreateRun', wish);
    assert.equal(run.labels.a, 'b');
    const again = await daemon.call('RunService/CreateRun', wish);
    assert.ok(again.existed && again.run.id === run.id);
    daemon.run = run.id;
  },
  async 'RunService/WaitRun'(daemon) {
    const timeout = { seconds: PATIENCE_MS / 1000 };
    const answer = await daemon.call('RunService/WaitRun', { id: daemon.run, timeout });
    assert.deepEqual([answer.timed_out, answer.run.state], [false, 'RUN_STATE_SUCCEEDED']);
  },
  async 'RunService/GetRun'(daemon) {
    const { run } = await daemon.call('RunService/GetRun', { id: daemon.run });
    assert.deepEqual([run.answer, run.usage.tool_calls], ['done', 1]);
  },
  async 'RunService/ListRuns'(daemon) {
    const { runs } = await daemon.call('RunService/ListRuns', { page_size: 1 });
    assert.deepEqual(runs.map((run) => run.id), [daemon.run]);
  },
  async 'RunService/StreamRunEvents'(daemon) {
    const events = await daemon.call('RunService/StreamRunEvents', { id: daemon.run, follow: true });
    const entries = events.filter((event) => event.event === 'entry').map((event) => event.entry);
    assert.deepEqual(entries.map((entry) => Number(entry.sequence)), entries.map((_, at) => at + 1));
    assert.equal(entries.at(-1).kind, 'run_finished');
  },
  async 'RunService/ListToolCalls'(daemon) {
    const page = await daemon.call('RunService/ListToolCalls', { run_id: daemon.run });
    assert.deepEqual(page.tool_calls.map((call) => [call.tool, call.outcome]), [['write_file', 'done']]);
  },
  async 'RunService/GetRunDiff'(daemon) {
    const chunks = await daemon.call('RunService/GetRunDiff', { id: daemon.run });
    assert.match(Buffer.concat(chunks.map((answer) => answer.chunk)).toString(), /^\+hello$/m);
  },
  async 'RunService/ResolveToolCall'(daemon) {
    // Of a run that stands still for no call.
    const wish = { run_id: daemon.run, turn: 1, resolution: 'CALL_RESOLUTION_RETRY' };
    const refused = daemon.call('RunService/ResolveToolCall', wish);
    await assert.rejects(refused, { code: grpc.status.FAILED_PRECONDITION });
  },
  async 'RunService/ListPendingApprovals'(daemon) {
    const page = await daemon.call('RunService/ListPendingApprovals', {});
    assert.deepEqual(page.approvals, []);
  },
  async 'RunService/ApproveToolCall'(daemon) {
    const wish = { run_id: daemon.run, turn: 1, digest: '00'.repeat(32) };
    const refused = daemon.call('RunService/ApproveToolCall', wish);
    await assert.rejects(refused, { code: grpc.status.FAILED_PRECONDITION });
  },
  async 'RunService/DenyToolCall'(daemon) {
    const wish = { run_id: daemon.run, turn: 1, digest: '00'.repeat(32) };
    const refused = daemon.call('RunService/DenyToolCall', wish);
    await assert.rejects(refused, { code: grpc.status.FAILED_PRECONDITION });
  },
  async 'RunService/ListCheckpoints'(daemon) {
    const { checkpoints } = await daemon.call('RunService/ListCheckpoints', { run_id: daemon.run });
    assert.ok(checkpoints.length > 1 && checkpoints.at(-1).wants_input);
  },
  async 'RunService/PauseRun'(daemon) {
    const refused = daemon.call('RunService/PauseRun', { id: daemon.run, why: 'lunch' });
    await assert.rejects(refused, { code: grpc.status.FAILED_PRECONDITION });
  },
  async 'RunService/ResumeRun'(daemon) {
    const refused = daemon.call('RunService/ResumeRun', { id: daemon.run, budget: { max_turns: 500 } });
    await assert.rejects(refused, { code: grpc.status.FAILED_PRECONDITION });
  },
  async 'RunService/SendRunInput'(daemon) {
    const refused = daemon.call('RunService/SendRunInput', { id: daemon.run, text: 'one more thing' });
    await assert.rejects(refused, { code: grpc.status.FAILED_PRECONDITION });
  },
  async 'RunService/CancelRun'(daemon) {
    const { run } = await daemon.call('RunService/CancelRun', { id: daemon.run, why: 'too late' });
    assert.deepEqual([run.id, run.answer], [daemon.run, 'done']);
  },
  async 'RunService/ForkRun'(daemon) {
    const wish = { id: daemon.run, input: 'one more thing', request_id: 'node-fork' };
    const { run } = await daemon.call('RunService/ForkRun', wish);
    assert.equal(run.forked_from.run_id, daemon.run);
    await daemon.call('RunService/CancelRun', { id: run.id });
  },
  async 'AdminService/GetServerInfo'(daemon) {
    const info = await daemon.call('AdminService/GetServerInfo', {});
    assert.ok(info.version && info.tools.length > 0);
  },
  async 'AdminService/GetHealth'(daemon) {
    const health = await daemon.call('AdminService/GetHealth', {});
    assert.ok(health.store_works && health.backends[0].name === 'default');
  },
  async 'AdminService/ProbeBackend'(daemon) {
    const { backend, models } = await daemon.call('AdminService/ProbeBackend', {});
    assert.ok(backend.name === 'default' && models.length > 0);
  },
  async 'AdminService/GetConfig'(daemon) {
    const { values } = await daemon.call('AdminService/GetConfig', {});
    assert.ok(values.some((value) => value.key === 'backend.base_url'));
  },
  async 'AdminService/ListAgents'(daemon) {
    const { agents } = await daemon.call('AdminService/ListAgents', {});
    assert.ok(agents.some((agent) => agent.name === 'executor'));
  },
  async 'AuditService/ListAuditEntries'(daemon) {
    const page = await daemon.call('AuditService/ListAuditEntries', { filter: { kinds: ['run_created'] } });
    assert.ok(page.entries.some((entry) => entry.run_id === daemon.run));
  },
  async 'AuditService/StreamAuditEntries'(daemon) {
    const answers = await daemon.call('AuditService/StreamAuditEntries', { filter: { run_id: daemon.run } });
    assert.equal(answers[0].entry.kind, 'run_created');
  },
  async 'AuditService/ExportAudit'(daemon) {
    const answers = await daemon.call('AuditService/ExportAudit', { filter: { run_id: daemon.run } });
    const lines = Buffer.concat(answers.map((answer) => answer.chunk)).toString().split('\n');
    assert.equal(JSON.parse(lines[0]).kind, 'run_created');
  },
  async 'AdminService/Drain'(daemon) {
    const drained = await daemon.call('AdminService/Drain', { undo: true });
    assert.equal(drained.draining, false);
  },
  async 'AdminService/BackupDatabase'(daemon) {
    const answers = await daemon.call('AdminService/BackupDatabase', {});
    const content = Buffer.concat(answers.slice(0, -1).map((answer) => answer.chunk));
    assert.equal(Number(answers.at(-1).summary.bytes), content.length);
  },
  async 'AuditService/PruneRuns'(daemon) {
    const page = await daemon.call('AuditService/PruneRuns', { ended_before: { seconds: 1 }, dry_run: true });
    assert.ok(page.runs.length === 0 && !page.has_more);
  },
  async 'AuditService/VerifyAudit'(daemon) {
    const report = await daemon.call('AuditService/VerifyAudit', { deep: true });
    assert.ok(report.intact && Number(report.entries) > 0 && report.head_hash.length === 32);
  },
  async 'PolicyService/GetPolicy'(daemon) {
    const { policy } = await daemon.call('PolicyService/GetPolicy', {});
    assert.ok(policy.revision.startsWith('sha256:') && policy.rules.length > 0);
    assert.deepEqual(policy.faults, []);
  },
  async 'PolicyService/ValidatePolicy'(daemon) {
    const report = await daemon.call('PolicyService/ValidatePolicy', {});
    assert.deepEqual([report.revision, report.faults], [report.current_revision, []]);
  },
  async 'PolicyService/TestPolicy'(daemon) {
    const report = await daemon.call('PolicyService/TestPolicy', {});
    assert.deepEqual([report.passed_count, report.faults], [report.tests.length, []]);
    const asked = report.tests.filter((test) => test.name === 'read .env');
    assert.deepEqual(asked.map((test) => [test.found, test.passed]), [['deny by secrets.env', true]]);
  },
  async 'PolicyService/ExplainDecision'(daemon) {
    const call = { tool: 'read_file', arguments: JSON.stringify({ path: '.env' }) };
    const found = await daemon.call('PolicyService/ExplainDecision', call);
    assert.deepEqual([found.decision, found.rule], ['deny', 'secrets.env']);
  },
  async 'PolicyService/ReloadPolicy'(daemon) {
    const { policy } = await daemon.call('PolicyService/GetPolicy', {});
    const report = await daemon.call('PolicyService/ReloadPolicy', { expected_revision: policy.revision });
    assert.deepEqual([report.revision, report.previous_revision], [policy.revision, policy.revision]);
  },
  async 'PolicyService/ListPolicyRevisions'(daemon) {
    const { policy } = await daemon.call('PolicyService/GetPolicy', {});
    const { revisions: [newest] } = await daemon.call('PolicyService/ListPolicyRevisions', { page_size: 1 });
    assert.deepEqual([newest.revision, newest.cause], [policy.revision, 'POLICY_REVISION_CAUSE_START']);
    assert.equal(newest.state, 'POLICY_REVISION_STATE_CURRENT');
  },
  async 'ToolService/ListTools'(daemon) {
    const { tools } = await daemon.call('ToolService/ListTools', {});
    assert.ok(tools.some((tool) => tool.name === 'read_file'));
  },
  async 'ToolService/GetTool'(daemon) {
    const { tool } = await daemon.call('ToolService/GetTool', { name: 'read_file' });
    assert.equal(JSON.parse(tool.parameters_schema).type, 'object');
  },
};

class Daemon {
  // `services` holds a client of each service, by name.
  constructor(services, metadata, workspace) {
    Object.assign(this, { services, metadata, workspace, run: null, called: [] });
  }

  // The answer of a unary method, or all answers of a streaming one.
  call(name, request) {
    this.called.push(name);
    const [service, method] = name.split('/');
    const client = this.services[service];
    const options = { deadline: Date.now() + PATIENCE_MS };
    return new Promise((resolve, reject) => {
      if (!client.constructor.service[method].responseStream) {
        client[method](request, this.metadata, options, (error, answer) => (error ? reject(error) : resolve(answer)));
        return;
      }
      const answers = [];
      const stream = client[method](request, this.metadata, options);
      stream.on('data', (answer) => answers.push(answer));
      stream.on('error', reject);
      stream.on('end', () => resolve(answers));
    });
  }
}

function load(proto) {
  const folder = path.join(proto, 'agentd', 'v1');
  const files = fs.readdirSync(folder).filter((name) => name.endsWith('.proto')).sort();
  const definition = loader.loadSync(files.map((name) => path.join('agentd', 'v1', name)), {
    includeDirs: [proto], keepCase: true, longs: String, enums: String, defaults: true, oneofs: true,
  });
  const { agentd: { v1 } } = grpc.loadPackageDefinition(definition);
  return Object.entries(v1).filter(([, loaded]) => loaded.service);
}

// Prints why, and ends. Not by an exception: its words would be a trace.
function refuse(why) {
  console.error(why);
  process.exit(1);
}

async function main() {
  const text = { type: 'string' };
  const { values } = parseArgs({ options: { address: text, 'token-file': text, workspace: text, proto: text } });
  const services = load(values.proto);
  const methods = services.flatMap(([name, { service }]) => Object.keys(service).map((method) => `${name}/${method}`));
  const missing = methods.filter((method) => !(method in EXERCISES));
  if (missing.length) refuse(`add to EXERCISES in tests/it/node/every_method.js: ${missing.join(', ')}`);
  const gone = Object.keys(EXERCISES).filter((method) => !methods.includes(method));
  if (gone.length) refuse(`take out of EXERCISES in tests/it/node/every_method.js: ${gone.join(', ')}`);

  const metadata = new grpc.Metadata();
  metadata.set('authorization', `Bearer ${fs.readFileSync(values['token-file'], 'utf8').trim()}`);
  const credentials = grpc.credentials.createInsecure();
  const clients = services.map(([name, Client]) => [name, new Client(values.address, credentials)]);
  const daemon = new Daemon(Object.fromEntries(clients), metadata, values.workspace);
  for (const [name, exercise] of Object.entries(EXERCISES)) {
    const before = daemon.called.length;
    await exercise(daemon);
    if (!daemon.called.slice(before).includes(name)) {
      refuse(`the exercise of ${name} in tests/it/node/every_method.js does not call it`);
    }
  }
  clients.forEach(([, client]) => client.close());
  console.log(JSON.stringify([...new Set(daemon.called)].sort()));
}

main().catch((error) => refuse(error.stack));
