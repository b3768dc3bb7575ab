//! What a process gives up for good before it becomes the work: capabilities, ways into the file system
//! (Landlock), and system calls (`seccomp`). Knows nothing of mounts and namespaces: see `root` and `init`.

use std::io;

use landlock::{
    ABI, Access as _, AccessFs, BitFlags, CompatLevel, Compatible as _, PathBeneath, PathFd,
    Ruleset, RulesetAttr as _, RulesetCreatedAttr as _, Scope,
};
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::sandbox::{
    inside::{root, seccomp},
    order::{Access, Tier, View},
};

/// Gives up what can be given up before it is known where the work looks. Errors: nothing may be started then.
pub(super) fn first(tier: Tier, access: Access) -> io::Result<()> {
    drop_capabilities()?;
    rustix::thread::set_no_new_privs(true)?;
    seccomp::refuse(tier, access)
}

/// Gives up the rest. Errors: nothing may be started then.
pub(super) fn last(tier: Tier, access: Access, view: &View) -> io::Result<()> {
    landlock(tier, access, view)
}

/// No capability, now or by any program that is started later.
pub(super) fn drop_capabilities() -> io::Result<()> {
    keep_only(CapabilitySet::empty())
}

/// No capability but that to kill: the work of another user is to be killed too.
pub(super) fn keep_only_the_power_to_kill() -> io::Result<()> {
    let own = rustix::thread::capabilities(None)?.permitted;
    keep_only(own & CapabilitySet::KILL)
}

fn keep_only(kept: CapabilitySet) -> io::Result<()> {
    for number in 0..64 {
        // Those that this kernel does not know, and all where we may not: `no_new_privs` stands either way.
        let _ = drop_bounding(number);
    }
    let none = CapabilitySet::empty();
    let kept = CapabilitySets { effective: kept, permitted: kept, inheritable: none };
    Ok(rustix::thread::set_capabilities(None, kept)?)
}

fn drop_bounding(number: libc::c_ulong) -> io::Result<()> {
    #[expect(
        unsafe_code,
        reason = "prctl has no safe form for capabilities that have no name here"
    )]
    // SAFETY: it takes numbers only.
    let done = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Which paths can be read, written and run, whatever is mounted where; and no signal or abstract socket of
/// anybody outside.
fn landlock(tier: Tier, access: Access, view: &View) -> io::Result<()> {
    let abi = ABI::V6;
    let wanted = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))
        .and_then(|ruleset| ruleset.scope(Scope::from_all(abi)))
        .and_then(Ruleset::create)
        .map_err(io::Error::other)?;
    let read = AccessFs::from_read(abi);
    let all = AccessFs::from_all(abi);
    let data = all & !AccessFs::Execute;
    let mut rules: Vec<(&str, BitFlags<AccessFs>)> = match tier {
        // The root holds nothing that may not be read.
        Tier::Full | Tier::Root => vec![("/", read)],
        Tier::Landlock => root::visible(view).map(|path| (path, read)).collect(),
    };
    let workspace = match access {
        Access::ReadWrite => all,
        Access::ReadOnly => read,
    };
    rules.push((&view.workspace.path, workspace));
    rules.extend(view.writable.iter().map(|path| (path.as_str(), all)));
    if tier != Tier::Landlock {
        rules.push(("/tmp", data));
    }
    rules.extend(root::devices().map(|path| (path, AccessFs::ReadFile | AccessFs::WriteFile)));
    // What is not there needs no rule; nor does what nobody may open.
    let opened = rules.into_iter().filter_map(|(path, access)| match PathFd::new(path) {
        Ok(path) => Some(Ok(PathBeneath::new(path, access))),
        Err(_) => None,
    });
    let status = wanted
        .add_rules(opened)
        .and_then(|ruleset| ruleset.restrict_self())
        .map_err(io::Error::other)?;
    if tier == Tier::Landlock && status.ruleset == landlock::RulesetStatus::NotEnforced {
        return Err(io::Error::other("this kernel has no Landlock"));
    }
    Ok(())
}
