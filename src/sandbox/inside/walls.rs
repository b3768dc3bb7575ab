//! What a process gives up for good before it becomes the work: capabilities, ways into the file system
//! (Landlock) and system calls (seccomp). Knows nothing of mounts and namespaces: see `root` and `init`.

use std::{collections::BTreeMap, io};

use landlock::{
    ABI, Access as _, AccessFs, BitFlags, CompatLevel, Compatible as _, PathBeneath, PathFd,
    Ruleset, RulesetAttr as _, RulesetCreatedAttr as _, Scope,
};
use rustix::thread::{CapabilitySet, CapabilitySets};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Length, SeccompCmpOp as Compare,
    SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

use crate::sandbox::order::{Access, Tier, View};

/// Number of the first system call that is newer than what this list was made by (file_getattr, Linux 6.17):
/// what it would do, nobody has judged.
const FIRST_UNKNOWN: u32 = 470;
/// Set in the number of a call of the x32 interface, which reaches the same functions by other numbers.
const X32: u32 = 0x4000_0000;

/// Gives everything up, in the order in which it can be done. Errors: nothing may be started then.
pub(super) fn stand(tier: Tier, view: &View) -> io::Result<()> {
    drop_capabilities()?;
    rustix::thread::set_no_new_privs(true)?;
    landlock(tier, view)?;
    seccomp(tier)
}

/// No capability, now or by any program that is started later.
pub(super) fn drop_capabilities() -> io::Result<()> {
    for number in 0..64 {
        // Those that this kernel does not know, and all where we may not: `no_new_privs` stands either way.
        let _ = drop_bounding(number);
    }
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    Ok(rustix::thread::set_capabilities(None, none)?)
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
fn landlock(tier: Tier, view: &View) -> io::Result<()> {
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
        Tier::Landlock => super::root::visible(view).map(|path| (path, read)).collect(),
    };
    let workspace = match view.access {
        Access::ReadWrite => all,
        Access::ReadOnly => read,
    };
    rules.push((&view.workspace, workspace));
    rules.extend(view.writable.iter().map(|path| (path.as_str(), all)));
    if tier != Tier::Landlock {
        rules.push(("/tmp", data));
    }
    rules.push(("/dev", AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::ReadDir));
    let opened = rules.into_iter().filter_map(|(path, access)| {
        // What is not there needs no rule.
        PathFd::new(path).ok().map(|path| Ok(PathBeneath::new(path, access)))
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

fn seccomp(tier: Tier) -> io::Result<()> {
    seccompiler::apply_filter(&unknown_calls()).map_err(io::Error::other)?;
    seccompiler::apply_filter(&refused_calls(tier)?).map_err(io::Error::other)
}

/// Calls that programs try and do without where the kernel does not have them.
fn unknown_calls() -> BpfProgram {
    let not_there = SeccompAction::Errno(libc::ENOSYS as u32).into();
    let refused = SeccompAction::Errno(libc::EPERM as u32).into();
    let clone3 = libc::SYS_clone3 as u32;
    // The number of the call is the first word of what a filter is given.
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let at_least = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let give = libc::BPF_RET | libc::BPF_K;
    let step = |code: u32, jt, jf, k| seccompiler::sock_filter { code: code as u16, jt, jf, k };
    vec![
        step(load, 0, 0, 0),
        step(at_least, 3, 0, X32),
        step(at_least, 3, 0, FIRST_UNKNOWN),
        // Its flags lie in memory, where no filter can read them; the C library falls back to clone.
        step(equal, 2, 0, clone3),
        step(give, 0, 0, SeccompAction::Allow.into()),
        step(give, 0, 0, refused),
        step(give, 0, 0, not_there),
    ]
}

/// Ways to the kernel that no build, test or shell needs, and attacks do.
const REFUSED: [libc::c_long; 58] = [
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    // Mounts and namespaces.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    // The kernel itself.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_acct,
    libc::SYS_syslog,
    libc::SYS_nfsservctl,
    libc::SYS_lookup_dcookie,
    libc::SYS_vhangup,
    libc::SYS_fanotify_init,
    libc::SYS_fanotify_mark,
    // The machine's clock and name.
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    // Where memory lies.
    libc::SYS_mbind,
    libc::SYS_set_mempolicy,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
    libc::SYS_memfd_secret,
];

fn refused_calls(tier: Tier) -> io::Result<BpfProgram> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        REFUSED.into_iter().map(|call| (call, Vec::new())).collect();
    #[cfg(target_arch = "x86_64")]
    for call in
        [libc::SYS_iopl, libc::SYS_ioperm, libc::SYS_modify_ldt, libc::SYS_uselib, libc::SYS_ustat]
    {
        rules.insert(call, Vec::new());
    }
    rules.insert(libc::SYS_socket, families(tier)?);
    rules.insert(libc::SYS_clone, namespaces()?);
    rules.insert(libc::SYS_ioctl, terminals()?);
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(io::Error::other)?;
    let refused = SeccompAction::Errno(libc::EPERM as u32);
    SeccompFilter::new(rules, SeccompAction::Allow, refused, arch)
        .and_then(BpfProgram::try_from)
        .map_err(io::Error::other)
}

/// Every family of sockets but local ones, and the internet's where there is a network of our own.
fn families(tier: Tier) -> io::Result<Vec<SeccompRule>> {
    let allowed = match tier {
        Tier::Full | Tier::Root => vec![libc::AF_UNIX, libc::AF_INET, libc::AF_INET6],
        // The network is the machine's: there is none for programs.
        Tier::Landlock => vec![],
    };
    let is_none_of_them = allowed
        .into_iter()
        .map(|family| condition(0, Compare::Ne, family as u64))
        .collect::<io::Result<Vec<_>>>()?;
    let internet = condition(0, Compare::Ge, 0)?;
    let all = if is_none_of_them.is_empty() { vec![internet] } else { is_none_of_them };
    let raw = [libc::AF_INET, libc::AF_INET6].map(|family| {
        // The type's low bits; the others are flags.
        let kind = condition(1, Compare::MaskedEq(0xf), libc::SOCK_RAW as u64)?;
        rule(vec![condition(0, Compare::Eq, family as u64)?, kind])
    });
    let raw = raw.into_iter().collect::<io::Result<Vec<_>>>()?;
    Ok([vec![rule(all)?], raw].concat())
}

/// New namespaces, in which one would be root again.
fn namespaces() -> io::Result<Vec<SeccompRule>> {
    let flags = [
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWNS,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWNET,
        libc::CLONE_NEWIPC,
        libc::CLONE_NEWUTS,
        libc::CLONE_NEWCGROUP,
    ];
    let asked = |flag: libc::c_int| {
        let flag = u64::from(flag.unsigned_abs());
        rule(vec![condition(0, Compare::MaskedEq(flag), flag)?])
    };
    flags.into_iter().map(asked).collect()
}

/// Words put into the terminal of whoever watches.
fn terminals() -> io::Result<Vec<SeccompRule>> {
    let asked = |request: libc::Ioctl| {
        let low = Length::Dword;
        let condition = SeccompCondition::new(1, low, Compare::Eq, request);
        rule(vec![condition.map_err(io::Error::other)?])
    };
    [libc::TIOCSTI, libc::TIOCLINUX].into_iter().map(asked).collect()
}

fn condition(argument: u8, compare: Compare, value: u64) -> io::Result<SeccompCondition> {
    // The kernel looks at the low half of these arguments only, and so must we.
    SeccompCondition::new(argument, Length::Dword, compare, value).map_err(io::Error::other)
}

fn rule(conditions: Vec<SeccompCondition>) -> io::Result<SeccompRule> {
    SeccompRule::new(conditions).map_err(io::Error::other)
}
