//! Which system calls are refused to the work, and which are not there for it: a list of what no build, test
//! or shell needs and attacks do. Why a list of that and not of the rest: docs/adr/0012-walls.md.

use std::{collections::BTreeMap, io};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Length, SeccompCmpOp as Compare,
    SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

use crate::sandbox::order::{Access, Tier};

/// Number of the first system call that is newer than what this list was made by (file_getattr, Linux 6.17):
/// what it would do, nobody has judged.
const FIRST_UNKNOWN: u32 = 470;
/// Set in the number of a call of the x32 interface, which reaches the same functions by other numbers.
const X32: u32 = 0x4000_0000;

/// Gives the calls up for good. Errors: the kernel takes no filter.
pub(super) fn refuse(tier: Tier, access: Access) -> io::Result<()> {
    // One program: the kernel takes longer over a second one than over all that stands in it.
    let program = [unknown_calls(access), refused_calls(tier)?].concat();
    seccompiler::apply_filter(&program).map_err(io::Error::other)
}

/// Calls that programs try and do without where the kernel does not have them. Goes on to what stands behind it
/// with every other.
fn unknown_calls(access: Access) -> BpfProgram {
    let not_there = SeccompAction::Errno(libc::ENOSYS as u32).into();
    let refused = SeccompAction::Errno(libc::EPERM as u32).into();
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let at_least = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let give = libc::BPF_RET | libc::BPF_K;
    let step = |code: u32, jt, jf, k| seccompiler::sock_filter { code: code as u16, jt, jf, k };
    let unless = |compare, number, answer| [step(compare, 0, 1, number), step(give, 0, 0, answer)];
    // Their flags and modes lie in memory, where no filter can read them; the C library falls back to the
    // older calls. Where nothing can be written, no mode can be given either.
    let unreadable = match access {
        Access::ReadWrite => &[libc::SYS_clone3, libc::SYS_openat2][..],
        Access::ReadOnly => &[libc::SYS_clone3],
    };
    // The number of the call is the first word of what a filter is given.
    let mut program = vec![step(load, 0, 0, 0)];
    program.extend(unless(at_least, X32, refused));
    program.extend(unless(at_least, FIRST_UNKNOWN, not_there));
    program.extend(unreadable.iter().flat_map(|call| unless(equal, *call as u32, not_there)));
    program
}

/// Ways to the kernel that no build, test or shell needs, and attacks do.
const REFUSED: &[libc::c_long] = &[
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_process_mrelease,
    // Mounts and namespaces.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_open_tree,
    OPEN_TREE_ATTR,
    STATMOUNT,
    LISTMOUNT,
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
    SET_MEMPOLICY_HOME_NODE,
];

/// Objects that outlive their program, where they are the machine's.
const SHARED_OBJECTS: &[libc::c_long] = &[
    libc::SYS_shmget,
    libc::SYS_shmat,
    libc::SYS_shmctl,
    libc::SYS_semget,
    libc::SYS_semop,
    libc::SYS_semctl,
    libc::SYS_semtimedop,
    libc::SYS_msgget,
    libc::SYS_msgsnd,
    libc::SYS_msgrcv,
    libc::SYS_msgctl,
    libc::SYS_mq_open,
    libc::SYS_mq_unlink,
];

// Newer than the names of the library; the same numbers on every architecture.
const SET_MEMPOLICY_HOME_NODE: libc::c_long = 450;
const STATMOUNT: libc::c_long = 457;
const LISTMOUNT: libc::c_long = 458;
const OPEN_TREE_ATTR: libc::c_long = 467;

fn refused_calls(tier: Tier) -> io::Result<BpfProgram> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        REFUSED.iter().map(|call| (*call, Vec::new())).collect();
    if tier == Tier::Landlock {
        rules.extend(SHARED_OBJECTS.iter().map(|call| (*call, Vec::new())));
    }
    #[cfg(target_arch = "x86_64")]
    for call in
        [libc::SYS_iopl, libc::SYS_ioperm, libc::SYS_modify_ldt, libc::SYS_uselib, libc::SYS_ustat]
    {
        rules.insert(call, Vec::new());
    }
    rules.insert(libc::SYS_socket, families(tier)?);
    rules.insert(libc::SYS_socketpair, vec![rule(vec![family_is_not(libc::AF_UNIX)?])?]);
    // Limits of others: by one of CPU time a process can be killed, by one of files a launcher misled.
    rules.insert(libc::SYS_prlimit64, vec![rule(vec![condition(0, Compare::Ne, 0)?])?]);
    rules.insert(
        libc::SYS_personality,
        vec![rule(PERSONALITIES.map(other_than).into_iter().collect::<io::Result<_>>()?)?],
    );
    rules.extend(owner_s_power()?);
    rules.insert(libc::SYS_clone, namespaces()?);
    rules.insert(libc::SYS_ioctl, terminals()?);
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(io::Error::other)?;
    let refused = SeccompAction::Errno(libc::EPERM as u32);
    SeccompFilter::new(rules, SeccompAction::Allow, refused, arch)
        .and_then(BpfProgram::try_from)
        .map_err(io::Error::other)
}

/// Those that programs ask for: none in particular, another name of the kernel, memory that does not move.
const PERSONALITIES: [u64; 5] = [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

fn other_than(personality: u64) -> io::Result<SeccompCondition> {
    condition(0, Compare::Ne, personality)
}

/// Files that run as their owner, whoever starts them: nobody outside may find one in the workspace. By the
/// call, the place of the mode among its arguments, and the place of the flags that make it count.
fn owner_s_power() -> io::Result<Vec<(i64, Vec<SeccompRule>)>> {
    const FCHMODAT2: libc::c_long = 452;
    let mut calls = vec![
        (libc::SYS_fchmod, 1, None),
        (libc::SYS_fchmodat, 2, None),
        (FCHMODAT2, 2, None),
        (libc::SYS_mknodat, 2, None),
        (libc::SYS_openat, 3, Some(2)),
    ];
    #[cfg(target_arch = "x86_64")]
    calls.extend([
        (libc::SYS_chmod, 1, None),
        (libc::SYS_mknod, 1, None),
        (libc::SYS_creat, 1, None),
        (libc::SYS_open, 2, Some(1)),
    ]);
    let bits = [libc::S_ISUID, libc::S_ISGID].map(u64::from);
    // The second is what O_TMPFILE has of its own.
    let making = [libc::O_CREAT, libc::O_TMPFILE & !libc::O_DIRECTORY];
    let making = making.map(|flag| u64::from(flag.unsigned_abs()));
    let mut rules = Vec::new();
    for (call, mode, flags) in calls {
        let mut of_call = Vec::new();
        for bit in bits {
            let set = || condition(mode, Compare::MaskedEq(bit), bit);
            match flags {
                None => of_call.push(rule(vec![set()?])?),
                Some(flags) => {
                    for flag in making {
                        let made = condition(flags, Compare::MaskedEq(flag), flag)?;
                        of_call.push(rule(vec![made, set()?])?);
                    }
                }
            }
        }
        rules.push((call, of_call));
    }
    Ok(rules)
}

/// Every family of sockets but local ones, and the internet's, TCP and UDP, where there is a network of our
/// own.
fn families(tier: Tier) -> io::Result<Vec<SeccompRule>> {
    if tier == Tier::Landlock {
        // The network is the machine's: there is none for programs.
        return Ok(Vec::new());
    }
    let internet = [libc::AF_INET, libc::AF_INET6];
    let others = [libc::AF_UNIX, internet[0], internet[1]].map(family_is_not);
    let mut rules = vec![rule(others.into_iter().collect::<io::Result<_>>()?)?];
    for family in internet {
        let is_family = || condition(0, Compare::Eq, family.unsigned_abs().into());
        // The type's low bits; the others are flags. Raw, reliable datagrams, sequenced, DCCP, packets.
        for kind in [3, 4, 5, 6, 10] {
            let kind = condition(1, Compare::MaskedEq(0xf), kind)?;
            rules.push(rule(vec![is_family()?, kind])?);
        }
        let known = [0, libc::IPPROTO_TCP, libc::IPPROTO_UDP];
        let other = |protocol: i32| condition(2, Compare::Ne, protocol.unsigned_abs().into());
        let mut conditions = known.map(other).into_iter().collect::<io::Result<Vec<_>>>()?;
        conditions.push(is_family()?);
        rules.push(rule(conditions)?);
    }
    Ok(rules)
}

fn family_is_not(family: libc::c_int) -> io::Result<SeccompCondition> {
    condition(0, Compare::Ne, family.unsigned_abs().into())
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
