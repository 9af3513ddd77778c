//! The default profile: what ordinary programs call, and more for those with the capability it belongs to.

use super::{Argument, Profile, Rule, Scope};

/// Calls that anyone may make. Left out: those that reach the whole machine, other containers, or rarely tested
/// corners of the kernel.
const ALLOWED: &str = "
accept accept4 adjtimex bind brk cachestat capget capset chdir clock_adjtime clock_getres clock_gettime
clock_nanosleep close close_range connect copy_file_range dup dup3 epoll_create1 epoll_ctl epoll_pwait epoll_pwait2
eventfd2 execve execveat exit exit_group faccessat faccessat2 fadvise64 fallocate fanotify_mark fchdir fchmod
fchmodat fchmodat2 fchown fchownat fcntl fdatasync fgetxattr flistxattr flock fremovexattr fsetxattr fstat fstatfs
fsync ftruncate futex futex_requeue futex_wait futex_waitv futex_wake get_robust_list getcpu getcwd getdents64
getegid geteuid getgid getgroups getitimer getpeername getpgid getpid getppid getpriority getrandom getresgid
getresuid getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday getuid getxattr inotify_add_watch
inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit ioctl ioprio_get
ioprio_set kill landlock_add_rule landlock_create_ruleset landlock_restrict_self lgetxattr linkat listen listmount
listxattr llistxattr lremovexattr lseek lsetxattr lsm_get_self_attr lsm_list_modules lsm_set_self_attr madvise
map_shadow_stack membarrier memfd_create memfd_secret mincore mkdirat mknodat mlock mlock2 mlockall mmap mprotect
mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink mremap mseal msgctl msgget msgrcv msgsnd
msync munlock munlockall munmap name_to_handle_at nanosleep newfstatat openat openat2 pidfd_open pidfd_send_signal
pipe2 pkey_alloc pkey_free pkey_mprotect ppoll prctl pread64 preadv preadv2 prlimit64 process_mrelease pselect6
ptrace pwrite64 pwritev pwritev2 read readahead readlinkat readv recvfrom recvmmsg recvmsg remap_file_pages
removexattr renameat renameat2 restart_syscall rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo
rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min
sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval sched_setaffinity
sched_setattr sched_setparam sched_setscheduler sched_yield seccomp semctl semget semop semtimedop sendfile sendmmsg
sendmsg sendto set_robust_list set_tid_address setfsgid setfsuid setgid setgroups setitimer setpgid setpriority
setregid setresgid setresuid setreuid setrlimit setsid setsockopt setuid setxattr shmat shmctl shmdt shmget shutdown
sigaltstack signalfd4 socketpair splice statfs statmount statx symlinkat sync sync_file_range syncfs sysinfo tee
tgkill timer_create timer_delete timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime
timerfd_settime times tkill truncate umask uname unlinkat utimensat vmsplice wait4 waitid write writev";

/// The same, older ones that x86_64 still has.
#[cfg(target_arch = "x86_64")]
const ALLOWED_HERE: &str = "
access alarm arch_prctl chmod chown creat dup2 epoll_create epoll_ctl_old epoll_wait epoll_wait_old eventfd fork
futimesat get_thread_area getdents getpgrp inotify_init lchown link lstat mkdir mknod modify_ldt open pause pipe
poll readlink rename rmdir select set_thread_area signalfd stat symlink time unlink utime utimes vfork";
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_HERE: &str = "";

/// What 32-bit programs on x86_64 call in the place of those above.
#[cfg(target_arch = "x86_64")]
const ALLOWED_32: &str = "
_llseek _newselect chown32 clock_adjtime64 clock_getres_time64 clock_gettime64 clock_nanosleep_time64
fadvise64_64 fchown32 fcntl64 fstat64 fstatat64 fstatfs64 ftruncate64 futex_time64 getegid32 geteuid32 getgid32
getgroups32 getresgid32 getresuid32 getuid32 io_pgetevents_time64 ipc lchown32 lstat64 mmap2 mq_timedreceive_time64
mq_timedsend_time64 nice ppoll_time64 pselect6_time64 recvmmsg_time64 rt_sigtimedwait_time64
sched_rr_get_interval_time64 semtimedop_time64 sendfile64 set_thread_area setfsgid32 setfsuid32 setgid32
setgroups32 setregid32 setresgid32 setresuid32 setreuid32 setuid32 sgetmask sigaction signal sigpending sigprocmask
sigreturn sigsuspend socketcall ssetmask stat64 statfs64 timer_gettime64 timer_settime64 timerfd_gettime64
timerfd_settime64 truncate64 ugetrlimit utimensat_time64 waitpid";
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_32: &str = "";

/// The architectures whose programs run here.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURES: [&str; 2] = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"];
#[cfg(not(target_arch = "x86_64"))]
const ARCHITECTURES: [&str; 1] = ["SCMP_ARCH_NATIVE"];

/// Calls that come with a capability.
const BY_CAPABILITY: &[(&str, &str)] = &[
    (
        "SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr move_mount \
         open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare",
    ),
    ("DAC_READ_SEARCH", "open_by_handle_at"),
    ("SYS_BOOT", "reboot"),
    ("SYS_CHROOT", "chroot"),
    ("SYS_MODULE", "delete_module init_module finit_module"),
    ("SYS_PACCT", "acct"),
    ("SYS_PTRACE", "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev"),
    #[cfg(target_arch = "x86_64")]
    ("SYS_RAWIO", "iopl ioperm"),
    ("SYS_TIME", "settimeofday clock_settime"),
    ("SYS_TTY_CONFIG", "vhangup"),
    ("SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    ("SYSLOG", "syslog"),
    ("BPF", "bpf"),
    ("PERFMON", "perf_event_open"),
];

/// `personality` may ask for these: Linux, and its forms with a fixed layout or an old uname.
const PERSONALITIES: [u64; 5] = [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];
/// All CLONE_NEW… flags that `clone` can carry.
const NEW_NAMESPACES: u64 = 0x7e02_0000;
/// Sockets to the host of a virtual machine.
const AF_VSOCK: u64 = 40;

/// The profile as if it had been read from a file.
pub fn profile() -> Profile {
    let names = |list: &str| list.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let allow = |names: Vec<String>| Rule { names, action: "SCMP_ACT_ALLOW".into(), ..Rule::default() };
    let argument = |value, value_two, op: &str| {
        Some(vec![Argument { index: 0, value, value_two: Some(value_two), op: op.into() }])
    };
    let without_admin = || Some(Scope { caps: vec!["SYS_ADMIN".into()], ..Scope::default() });
    let mut syscalls: Vec<Rule> = [ALLOWED, ALLOWED_HERE, ALLOWED_32].map(|list| allow(names(list))).into();
    for (capability, list) in BY_CAPABILITY {
        let includes = Some(Scope { caps: vec![(*capability).to_owned()], ..Scope::default() });
        syscalls.push(Rule { includes, ..allow(names(list)) });
    }
    for value in PERSONALITIES {
        syscalls.push(Rule { args: argument(value, 0, "SCMP_CMP_EQ"), ..allow(names("personality")) });
    }
    syscalls.push(Rule { args: argument(AF_VSOCK, 0, "SCMP_CMP_NE"), ..allow(names("socket")) });
    syscalls.push(Rule {
        args: argument(NEW_NAMESPACES, 0, "SCMP_CMP_MASKED_EQ"),
        excludes: without_admin(),
        ..allow(names("clone"))
    });
    // Its flags lie in memory, where a filter cannot look; told that it does not exist, libraries use `clone`.
    syscalls.push(Rule {
        names: names("clone3"),
        action: "SCMP_ACT_ERRNO".into(),
        errno_ret: Some(libc::ENOSYS as u32),
        excludes: without_admin(),
        ..Rule::default()
    });
    Profile {
        default_action: "SCMP_ACT_ERRNO".into(),
        default_errno_ret: Some(libc::EPERM as u32),
        architectures: ARCHITECTURES.map(str::to_owned).into(),
        syscalls,
        ..Profile::default()
    }
}
