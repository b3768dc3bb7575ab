//! What of a run may stand in the instructions of an agent: `{workspace}`, `{label.team}`. The same for the whole run, so
//! that backends can reuse their caches.

use std::collections::BTreeMap;

/// What stands for each variable.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    pub run: &'a str,
    pub agent: &'a str,
    pub workspace: &'a str,
    pub submitter: &'a str,
    pub labels: &'a BTreeMap<String, String>,
}

/// Names of all variables, for people.
const KNOWN: &str = "{run}, {agent}, {workspace}, {submitter}, {label.NAME}; a brace is {{ or }}";

/// A piece of a template.
enum Piece<'t> {
    Text(&'t str),
    Variable(&'t str),
}

/// Errors: a variable that is not known, or a brace alone, in words.
pub fn check(template: &str) -> Result<(), String> {
    let is_known = |name: &str| {
        matches!(name, "run" | "agent" | "workspace" | "submitter")
            || name.strip_prefix("label.").is_some_and(|label| !label.is_empty())
    };
    for piece in pieces(template)? {
        if let Piece::Variable(name) = piece
            && !is_known(name)
        {
            return Err(format!("there is no variable {{{name}}}; there are {KNOWN}"));
        }
    }
    Ok(())
}

/// The template with everything in its place; a label that the run does not have is nothing. One that was not checked
/// stays as it is.
pub fn filled(template: &str, facts: &Facts<'_>) -> String {
    let Ok(pieces) = pieces(template) else { return template.to_owned() };
    let value = |piece: Piece<'_>| match piece {
        Piece::Text(text) => text.to_owned(),
        Piece::Variable("run") => facts.run.to_owned(),
        Piece::Variable("agent") => facts.agent.to_owned(),
        Piece::Variable("workspace") => facts.workspace.to_owned(),
        Piece::Variable("submitter") => facts.submitter.to_owned(),
        Piece::Variable(name) => {
            let label = name.strip_prefix("label.").and_then(|label| facts.labels.get(label));
            label.cloned().unwrap_or_default()
        }
    };
    pieces.into_iter().map(value).collect()
}

fn pieces(template: &str) -> Result<Vec<Piece<'_>>, String> {
    let mut pieces = Vec::new();
    let mut rest = template;
    while let Some(place) = rest.find(['{', '}']) {
        let (text, brace) = rest.split_at(place);
        pieces.push(Piece::Text(text));
        if let Some(after) = brace.strip_prefix("{{").or_else(|| brace.strip_prefix("}}")) {
            pieces.push(Piece::Text(&brace[..1]));
            rest = after;
            continue;
        }
        let inside = brace.strip_prefix('{').and_then(|inside| inside.split_once('}'));
        let Some((name, after)) = inside else {
            return Err(format!("a brace stands alone; variables are {KNOWN}"));
        };
        pieces.push(Piece::Variable(name));
        rest = after;
    }
    pieces.push(Piece::Text(rest));
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_filled_in_and_double_braces_are_braces() {
        let labels = BTreeMap::from([("team".to_owned(), "infra".to_owned())]);
        let facts =
            Facts { run: "r", agent: "a", workspace: "/w", submitter: "uid:0", labels: &labels };
        let template = "Work in {workspace} for {label.team}{label.none} as {{\"a\": 1}}.";
        assert_eq!(check(template), Ok(()));
        assert_eq!(filled(template, &facts), "Work in /w for infra as {\"a\": 1}.");
        // What is filled in is no template.
        let odd = Facts { workspace: "/{run}", ..facts };
        assert_eq!(filled("{workspace}", &odd), "/{run}");
    }

    #[test]
    fn unknown_variables_and_lonely_braces_are_refused() {
        for template in ["{task}", "{label.}", "{ workspace}", "a } b", "{open"] {
            assert!(check(template).is_err(), "{template}");
        }
    }
}
