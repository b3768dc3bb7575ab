//! Callers as the configuration names them, and the tokens that prove them. What they may do is decided
//! elsewhere: `domain::access` and `grpc`.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc};

use crate::{
    domain::{
        access::{Access, Credential, Reach, Role},
        ids::Caller,
    },
    secrets::{self, ExposeSecret as _},
};

/// Most callers: every request is compared with the token of each.
const MOST: usize = 256;
/// Longest name, in bytes.
const NAME_BYTES: usize = 64;
/// Shortest and longest token, in bytes; a shorter one can be guessed, a longer one fits in no header.
const TOKEN_BYTES: (usize, usize) = (16, 4096);

/// One caller of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallerSettings {
    /// Lower-case letters, digits and `-`; the journal knows the caller as `caller:NAME`.
    pub name: String,
    pub role: Role,
    /// Holds the bearer token and nothing else.
    pub token_file: PathBuf,
    /// Directories whose workspaces the caller may name; none: all below the workspace root.
    pub workspaces: Option<Vec<PathBuf>>,
    /// Agents that it may name; none: all.
    pub agents: Option<Vec<String>>,
}

/// Adds what is wrong with the callers as they stand in the configuration. Touches no file.
pub fn check(callers: &[CallerSettings], errors: &mut Vec<String>) {
    if callers.len() > MOST {
        errors.push(format!("callers: there are {}, {MOST} are accepted", callers.len()));
    }
    let mut names = BTreeSet::new();
    for CallerSettings { name, .. } in callers {
        let is_plain = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
        if name.is_empty() || name.len() > NAME_BYTES || !name.bytes().all(is_plain) {
            errors.push(format!(
                "callers: {name:?} is not a name; use 1 to {NAME_BYTES} of a-z, 0-9 and '-'"
            ));
        }
        if !names.insert(name) {
            errors.push(format!("callers: {name:?} stands there twice; give each its own name"));
        }
    }
}

/// Reads every caller's token, and gives them after those that are `known` already, whose tokens no other
/// may have.
///
/// Errors: one line each, without any token.
pub fn load(
    callers: &[CallerSettings],
    mut known: Vec<Credential>,
) -> Result<Vec<Credential>, Vec<String>> {
    let mut errors = Vec::new();
    for settings in callers {
        match credential(settings) {
            Ok(credential) => match known.iter().find(|other| other.token == credential.token) {
                Some(other) => errors.push(format!(
                    "callers: {} has the same token as {}; give each its own",
                    settings.name, other.access.caller
                )),
                None => known.push(credential),
            },
            Err(error) => errors.push(format!("callers: {}: {error}", settings.name)),
        }
    }
    if errors.is_empty() { Ok(known) } else { Err(errors) }
}

fn credential(settings: &CallerSettings) -> Result<Credential, String> {
    let path = settings.token_file.display();
    let source = secrets::Source::File(settings.token_file.clone());
    let token = secrets::read(&source, |_| None).map_err(|error| format!("token_file: {error}"))?;
    let token = token.expose_secret();
    let (least, most) = TOKEN_BYTES;
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!("token_file {path}: a token is printable ASCII without spaces"));
    }
    if token.len() < least || token.len() > most {
        let length = token.len();
        return Err(format!(
            "token_file {path}: the token has {length} characters, {least} to {most} are accepted"
        ));
    }
    let workspaces = settings.workspaces.as_ref().map(|directories| {
        // Resolved once, as the workspaces of runs are: a link must not widen a caller's reach.
        let resolved = directories.iter().map(|directory| {
            directory.canonicalize().map_err(|error| {
                format!("workspaces: {} cannot be used: {error}", directory.display())
            })
        });
        resolved.collect::<Result<Vec<_>, _>>()
    });
    let reach = Reach { workspaces: workspaces.transpose()?, agents: settings.agents.clone() };
    let caller = Caller::new(format!("caller:{}", settings.name));
    let access = Access { caller, role: settings.role, reach: Arc::new(reach) };
    Ok(Credential { access, token: token.into() })
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    fn settings(name: &str, token_file: &Path) -> CallerSettings {
        CallerSettings {
            name: name.into(),
            role: Role::Viewer,
            token_file: token_file.into(),
            workspaces: None,
            agents: None,
        }
    }

    fn owner() -> Vec<Credential> {
        let access = Access::owner(Caller::new("uid:7"));
        vec![Credential { access, token: "the-owner-s-own-token".into() }]
    }

    fn errors(callers: &[CallerSettings]) -> Vec<String> {
        let mut errors = Vec::new();
        check(callers, &mut errors);
        errors
    }

    #[test]
    fn names_are_plain_and_unique() {
        let file = Path::new("/t");
        assert_eq!(errors(&[settings("ci-1", file), settings("b", file)]), [""; 0]);
        for name in ["", "CI", "a b", "a:b", "é", &"a".repeat(65)] {
            assert_eq!(errors(&[settings(name, file)]).len(), 1, "{name}");
        }
        assert_eq!(errors(&[settings("a", file), settings("a", file)]).len(), 1);
    }

    #[test]
    fn a_token_that_is_short_or_shared_or_no_header_can_carry_is_refused_and_never_told() {
        let home = tempfile::tempdir().unwrap();
        let put = |name: &str, token: &str| {
            fs::write(home.path().join(name), token).unwrap();
            settings(name, &home.path().join(name))
        };
        let good = put("good", "0123456789abcdef\n");
        let known = load(std::slice::from_ref(&good), owner()).unwrap();
        assert_eq!(known.len(), 2);
        assert_eq!(known[1].access.caller, Caller::new("caller:good"));
        assert_eq!(&*known[1].token, "0123456789abcdef");
        for (bad, why) in [
            (put("short", "0123456789abcde"), "has 15 characters"),
            (put("same", "0123456789abcdef"), "same token as caller:good"),
            (put("owner", "the-owner-s-own-token"), "same token as uid:7"),
            (put("spaced", "0123456789 abcdef"), "printable ASCII"),
            (put("long", &"x".repeat(4097)), "has 4097 characters"),
            (settings("gone", &home.path().join("gone")), "cannot be opened"),
        ] {
            let errors = load(&[good.clone(), bad], owner()).unwrap_err();
            assert!(errors.len() == 1 && errors[0].contains(why), "{why}: {errors:?}");
            assert!(!errors[0].contains("0123456789"), "{errors:?}");
        }
    }
}
