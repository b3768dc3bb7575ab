//! The tools of one daemon: the built-in ones and those that the operator declared, each with its
//! schemas ready to be asked. Arguments are checked before a tool sees them, results before the model
//! does.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
};

use jsonschema::Validator;
use serde_json::Value;

use crate::{
    domain::{
        effect::{Effect, EffectResult},
        ids::ToolName,
        tool::{Declaration, OutcomeKind, ToolOutcome, ToolSpec},
    },
    tools::{BUILTIN, BadCall, Tool, checked_text, declared::Declared},
};

/// Most tools of a daemon: more confuse a model, and backends refuse them.
const MOST_TOOLS: usize = 128;
/// Most faults of one call that are told.
const FAULTS: usize = 5;

/// Every tool of a daemon.
#[derive(Debug)]
pub struct Toolbox {
    entries: Vec<Arc<Entry>>,
    places: HashMap<ToolName, usize>,
    specs: Vec<ToolSpec>,
}

/// One tool with its schemas.
pub struct Entry {
    tool: Box<dyn Tool>,
    spec: ToolSpec,
    source: Source,
    arguments: Schema,
    result: Option<Schema>,
}

/// Where a tool comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    BuiltIn,
    /// The file that declares it.
    Declared(String),
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry").field("name", &self.spec.name).finish_non_exhaustive()
    }
}

impl Toolbox {
    /// The built-in tools alone.
    pub fn built_in() -> Self {
        let entries = BUILTIN.iter().map(|tool| Entry::new(Box::new(*tool), Source::BuiltIn));
        Self::of(entries.map(Arc::new).collect())
    }

    /// The built-in tools and the declared ones, in this order.
    ///
    /// Errors: all of them at once; two tools of one name, a schema that cannot be compiled or does not
    /// describe an object, too many tools.
    pub fn new(declarations: Vec<Declaration>) -> Result<Self, Vec<String>> {
        let built_in = Self::built_in();
        let mut errors = Vec::new();
        let mut entries = built_in.entries;
        for declaration in declarations {
            let name = declaration.spec.name.clone();
            let file = declaration.source.clone();
            if let Some(other) = entries.iter().find(|entry| entry.spec.name == name) {
                errors.push(format!(
                    "{file}: {name}: there is another tool of this name, {}; give it another name",
                    other.source
                ));
                continue;
            }
            let entry = Entry::new(Box::new(Declared(declaration)), Source::Declared(file.clone()));
            errors
                .extend(entry.faults().into_iter().map(|fault| format!("{file}: {name}: {fault}")));
            entries.push(Arc::new(entry));
        }
        if entries.len() > MOST_TOOLS {
            errors.push(format!("there are {} tools, {MOST_TOOLS} are accepted", entries.len()));
        }
        if errors.is_empty() { Ok(Self::of(entries)) } else { Err(errors) }
    }

    fn of(entries: Vec<Arc<Entry>>) -> Self {
        let specs: Vec<ToolSpec> = entries.iter().map(|entry| entry.spec.clone()).collect();
        let places = specs.iter().enumerate().map(|(n, spec)| (spec.name.clone(), n)).collect();
        Self { entries, places, specs }
    }

    /// What models are told, the same bytes from run to run.
    pub fn specs(&self) -> &[ToolSpec] {
        &self.specs
    }

    /// The tools, in the order of their specs.
    pub fn entries(&self) -> &[Arc<Entry>] {
        &self.entries
    }

    /// The tool of that name.
    pub fn find(&self, name: &ToolName) -> Option<&Arc<Entry>> {
        self.entries.get(*self.places.get(name)?)
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::BuiltIn => f.write_str("builtin"),
            Self::Declared(file) => f.write_str(file),
        }
    }
}

impl Entry {
    fn new(tool: Box<dyn Tool>, source: Source) -> Self {
        let spec = tool.spec();
        let arguments = Schema::new(spec.parameters.clone());
        let result = spec.result.clone().map(Schema::new);
        Self { tool, spec, source, arguments, result }
    }

    pub fn spec(&self) -> &ToolSpec {
        &self.spec
    }

    pub fn source(&self) -> &Source {
        &self.source
    }

    /// What a call wants. Errors are for the model, and name the place of each fault.
    pub fn effect(&self, raw: &str) -> Result<Effect, BadCall> {
        let text = checked_text(raw)?;
        let value: Value =
            serde_json::from_str(text).map_err(|error| BadCall::not_json(&error, text))?;
        self.arguments.check(&value).map_err(|faults| {
            BadCall::arguments(format!("the arguments do not fit the tool's schema: {faults}"))
        })?;
        self.tool.effect(text)
    }

    /// What the model hears of the effect's result; it fits the tool's schema, or is a failure.
    pub fn outcome(&self, result: EffectResult) -> ToolOutcome {
        let outcome = self.tool.outcome(result);
        let Some(schema) = &self.result else { return outcome };
        if outcome.kind != OutcomeKind::Done {
            return outcome;
        }
        let checked = match serde_json::from_str(&outcome.output) {
            Ok(value) => schema.check(&value),
            Err(error) => Err(error.to_string()),
        };
        match checked {
            Ok(()) => outcome,
            Err(faults) => ToolOutcome::failed(
                "RESULT_DOES_NOT_FIT",
                &format!(
                    "{} ran, but its result does not fit its schema: {faults}",
                    self.spec.name
                ),
            ),
        }
    }

    /// What is wrong with the schemas themselves.
    fn faults(&self) -> Vec<String> {
        let arguments = self.arguments.validator().as_ref().err();
        let mut faults: Vec<String> =
            arguments.map(|fault| format!("parameters: {fault}")).into_iter().collect();
        let result = self.result.as_ref().and_then(|schema| schema.validator().as_ref().err());
        faults.extend(result.map(|fault| format!("result: {fault}")));
        let parameters: Value = serde_json::from_str(&self.spec.parameters).unwrap_or_default();
        if parameters.get("type").and_then(Value::as_str) != Some("object") {
            faults.push(
                "parameters: must have \"type\": \"object\", which is what models send".into(),
            );
        }
        faults
    }
}

/// A schema, compiled when it is first asked: starting must not wait for it.
struct Schema {
    text: Arc<str>,
    compiled: OnceLock<Result<Validator, String>>,
}

impl Schema {
    fn new(text: Arc<str>) -> Self {
        Self { text, compiled: OnceLock::new() }
    }

    fn validator(&self) -> &Result<Validator, String> {
        self.compiled.get_or_init(|| {
            let schema: Value = serde_json::from_str(&self.text).map_err(|e| e.to_string())?;
            // Nothing is ever fetched: the crate is built without that.
            jsonschema::validator_for(&schema).map_err(|error| {
                format!(
                    "is not a JSON Schema that can be compiled: {}{}",
                    place(error.instance_path()),
                    error
                )
            })
        })
    }

    /// Errors: the faults, each with its place as a JSON pointer.
    fn check(&self, value: &Value) -> Result<(), String> {
        let validator = self.validator().as_ref().map_err(Clone::clone)?;
        let mut errors = validator.iter_errors(value);
        let told: Vec<String> = errors
            .by_ref()
            .take(FAULTS)
            // Masked: an argument may be large, and the model knows what it wrote.
            .map(|error| {
                format!("{}{}", place(error.instance_path()), error.masked_with("the value"))
            })
            .collect();
        match (told.is_empty(), errors.count()) {
            (true, _) => Ok(()),
            (false, 0) => Err(told.join("; ")),
            (false, more) => Err(format!("{}; and {more} more", told.join("; "))),
        }
    }
}

fn place(path: &jsonschema::paths::Location) -> String {
    match path.as_str() {
        "" => String::new(),
        path => format!("{path}: "),
    }
}
