//! A QEMU guest with a working `/dev/kvm`, for machines that have none.
//!
//! QEMU emulates AMD-V with nested paging, so `kvm-amd` of the guest's own kernel can run microVMs,
//! slowly. The guest sees the whole file system of this machine read-only below a writable overlay,
//! a scratch disk, and no network but its loopback: programs built here run there
//! unchanged. One guest serves one job, a shell script run as root.
//!
//! ```text
//! xtask ── unix socket `status` ◄── "ready 4.2", "exit 0"
//!       ── unix socket `output` ◄── the job's stdout and stderr
//!       ── file `console`       ◄── kernel messages, shown if the guest dies
//!       ── 9p `job`              ─► stage2.sh, guest.env, job.sh
//! ```

mod initrd;
mod kernel;

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::report;
use crate::run::{Run, quoted};
use crate::tree::{Tree, which};
use kernel::Kernel;

/// QEMU sometimes hangs when the guest resets; it is not needed any more by then.
const RESET: Duration = Duration::from_secs(5);

/// An emulated boot can fail on a busy machine.
const ATTEMPTS: u32 = 3;

/// How long the guest may take until it runs the job.
const BOOT: Duration = Duration::from_secs(240);

/// `la57=off`, and one CPU: QEMU 7.2 (TCG) that runs two microVMs at once now and then loses the
/// state of a CPU: a triple fault of a microVM, one that stands still, or faults without end in the
/// kernel of the outer guest. Five-level page tables and a second CPU make it more likely.
const CPU: &str = "max,+svm,+npt,la57=off";
const CPUS: &str = "1";

/// QEMU 7.2 (TCG) now and then does not wake a CPU that runs microVMs when its timer is due: the
/// outer guest then stands still for ever, and any interrupt of a device wakes it. So it gets one
/// this often.
const PULSE: Duration = Duration::from_secs(1);

/// `no_timer_check`: on a busy machine the emulated timer ticks late, and the kernel gives up.
const COMMAND_LINE: &str = "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off nokaslr \
                            tsc=reliable random.trust_cpu=on no_timer_check";

/// What the outer guest is to do.
#[derive(Debug)]
pub(crate) struct Job {
    /// A shell script, run as root.
    pub(crate) script: String,
    /// The guest is killed after this time.
    pub(crate) timeout: Duration,
}

/// Fetches the kernel and makes the initrd, where they are missing.
pub(crate) fn prepare(tree: &Tree) -> Result<()> {
    let kernel = Kernel::ensure(tree)?;
    initrd::ensure(tree, &kernel)?;
    Ok(())
}

/// Says whether busybox is there and has what the guest needs.
pub(crate) fn busybox_works() -> bool {
    initrd::busybox_works()
}

/// Runs a job in a fresh outer guest and returns its exit status.
///
/// The job's output is passed on as it comes.
///
/// # Errors
///
/// When the guest cannot be started, dies before the job ended, or overruns its time.
pub(crate) fn run(tree: &Tree, job: &Job) -> Result<u8> {
    let kernel = Kernel::ensure(tree)?;
    let initrd = initrd::ensure(tree, &kernel)?;
    for attempt in 1..=ATTEMPTS {
        let directory = tempfile::Builder::new()
            .prefix("bottle-outer.")
            .tempdir()
            .context("cannot make a temporary directory")?;
        let mut guest = Guest::start(&kernel, &initrd, directory.path(), job)?;
        match guest.follow(job.timeout) {
            // The job has not begun, so it can't be run twice.
            Err(error) if !guest.booted && attempt < ATTEMPTS => {
                report::say(format!("{error:#}"));
                report::say("trying another outer guest");
            }
            ended => return ended,
        }
    }
    bail!("no outer guest booted")
}

#[derive(Debug)]
struct Guest {
    qemu: Child,
    status: UnixListener,
    output: UnixListener,
    pulse: UnixListener,
    console: PathBuf,
    started: Instant,
    booted: bool,
}

impl Guest {
    fn start(kernel: &Kernel, initrd: &Path, directory: &Path, job: &Job) -> Result<Self> {
        let share = directory.join("job");
        fs::create_dir(&share)?;
        fs::write(share.join("stage2.sh"), include_str!("stage2.sh"))?;
        fs::write(share.join("job.sh"), &job.script)?;
        let modules = quoted(kernel.modules());
        let environment = format!(
            "OUTER_MODULES={}\nexport OUTER=1\n",
            modules.to_string_lossy()
        );
        fs::write(share.join("guest.env"), environment)?;

        let disk = directory.join("scratch.img");
        File::create(&disk)?.set_len(32 << 30)?;
        Run::new(which("mkfs.ext4").context("mkfs.ext4 is missing; run `cargo xtask setup`")?)
            .args(["-q", "-O", "^has_journal"])
            .args(["-E", "lazy_itable_init=1,nodiscard"])
            .arg(&disk)
            .go()?;

        let console = directory.join("console");
        File::create(&console)?;
        let [status_path, output_path, pulse_path] =
            ["status", "output", "pulse"].map(|name| directory.join(name));
        let status = UnixListener::bind(&status_path)?;
        let output = UnixListener::bind(&output_path)?;
        let pulse = UnixListener::bind(&pulse_path)?;

        let program = which("qemu-system-x86_64")
            .context("qemu-system-x86_64 is missing; run `cargo xtask setup`")?;
        // Ends QEMU should this process be killed; the signal is bound to this thread, which waits.
        let mut command = match which("setpriv") {
            Some(setpriv) => {
                let mut command = Command::new(setpriv);
                command.args(["--pdeathsig", "KILL"]).arg(program);
                command
            }
            None => Command::new(program),
        };
        command
            .args(["-accel", "tcg,thread=multi,tb-size=1024"])
            .args(["-cpu", CPU, "-smp", CPUS, "-m", &memory_mib()])
            .args([
                "-nodefaults",
                "-no-reboot",
                "-display",
                "none",
                "-monitor",
                "none",
            ])
            .arg("-kernel")
            .arg(kernel.image())
            .arg("-initrd")
            .arg(initrd)
            .args(["-append", COMMAND_LINE])
            .args([
                "-chardev",
                &option("file,id=console,path=", &console),
                "-serial",
            ])
            .args(["chardev:console", "-device", "virtio-serial-pci"])
            .args(["-chardev", &option("socket,id=status,path=", &status_path)])
            .args(["-device", "virtserialport,chardev=status,name=status"])
            .args(["-chardev", &option("socket,id=output,path=", &output_path)])
            .args(["-device", "virtserialport,chardev=output,name=output"])
            .args(["-chardev", &option("socket,id=pulse,path=", &pulse_path)])
            .args(["-device", "virtserialport,chardev=pulse,name=pulse"])
            .args(["-device", "virtio-rng-pci"])
            .args([
                "-drive",
                &option(
                    "if=none,id=scratch,format=raw,cache=unsafe,discard=unmap,file=",
                    &disk,
                ),
            ])
            .args(["-device", "virtio-blk-pci,drive=scratch"])
            .args([
                "-virtfs",
                "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap",
            ])
            .args([
                "-virtfs",
                &option(
                    "local,mount_tag=job,security_model=none,multidevs=remap,path=",
                    &share,
                ),
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let qemu = command.spawn().context("cannot start qemu-system-x86_64")?;
        Ok(Self {
            qemu,
            status,
            output,
            pulse,
            console,
            started: Instant::now(),
            booted: false,
        })
    }

    /// Passes on what the job prints until it ends, and ends the guest in any case.
    fn follow(&mut self, timeout: Duration) -> Result<u8> {
        let result = self.exit_status(timeout);
        // Both fail only if QEMU has ended already.
        let _ended = self.qemu.kill();
        let _ended = self.qemu.wait();
        result.map_err(|error| match fs::read_to_string(&self.console) {
            Ok(console) if !console.trim().is_empty() => {
                error.context(format!("its console said last:\n{}", tail(&console, 20)))
            }
            Ok(_) | Err(_) => error,
        })
    }

    fn exit_status(&mut self, timeout: Duration) -> Result<u8> {
        // QEMU connects to all before it starts the machine, or exits.
        let status = self.accept(&self.status.try_clone()?)?;
        let mut output = self.accept(&self.output.try_clone()?)?;
        let pulse = self.accept(&self.pulse.try_clone()?)?;
        thread::spawn(move || beat(&pulse));
        let printer = thread::spawn(move || {
            let mut buffer = [0; 16384];
            while let Ok(count) = output.read(&mut buffer)
                && count > 0
            {
                report::raw(&buffer[..count]);
            }
        });

        let deadline = self.started + timeout.max(BOOT);
        let mut lines = BufReader::new(status);
        loop {
            let limit = if self.booted {
                deadline
            } else {
                deadline.min(self.started + BOOT)
            };
            let line = read_line(&mut lines, limit).with_context(|| {
                if self.booted {
                    format!("the job did not end within {}", report::took(timeout))
                } else {
                    format!("the outer guest did not boot within {}", report::took(BOOT))
                }
            })?;
            match line.trim_end().split_once(' ') {
                Some(("ready", _)) => {
                    self.booted = true;
                    report::say(format!(
                        "outer guest up in {}",
                        report::took(self.started.elapsed())
                    ));
                }
                Some(("exit", code)) => {
                    let code = code
                        .parse()
                        .context("the outer guest sent no exit status")?;
                    // Whatever the job printed is on its way or here: the end of QEMU ends it.
                    let _silent = read_line(&mut lines, Instant::now() + RESET);
                    let _ended = self.qemu.kill();
                    let _finished = printer.join();
                    return Ok(code);
                }
                Some(_) | None if line.is_empty() => {
                    bail!("the outer guest died before the job ended")
                }
                Some(_) | None => bail!("the outer guest sent `{}`", line.escape_debug()),
            }
        }
    }

    fn accept(&mut self, listener: &UnixListener) -> Result<UnixStream> {
        listener.set_nonblocking(true)?;
        // A condition with a deadline: QEMU connects, or ends.
        let limit = Instant::now() + Duration::from_secs(30);
        loop {
            match listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false)?;
                    return Ok(stream);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("cannot accept QEMU's connection"),
            }
            if let Some(status) = self.qemu.try_wait()? {
                bail!("qemu-system-x86_64 ended before the guest started: {status}");
            }
            if Instant::now() > limit {
                bail!("qemu-system-x86_64 did not start the guest");
            }
            thread::park_timeout(Duration::from_millis(20));
        }
    }
}

/// Interrupts the guest every [`PULSE`] until it ends.
fn beat(mut pulse: &UnixStream) {
    while pulse.write_all(b".").is_ok() {
        thread::park_timeout(PULSE);
    }
}

/// Reads one line; an empty one is the end of the stream.
fn read_line(lines: &mut BufReader<UnixStream>, limit: Instant) -> Result<String> {
    let mut line = String::new();
    let rest = limit
        .saturating_duration_since(Instant::now())
        .max(Duration::from_millis(1));
    lines.get_ref().set_read_timeout(Some(rest))?;
    lines.read_line(&mut line)?;
    Ok(line)
}

/// Writes a QEMU option with a path; a comma in it must be doubled.
fn option(prefix: &str, path: &Path) -> String {
    format!("{prefix}{}", path.display().to_string().replace(',', ",,"))
}

/// Half of this machine's memory, between 2 and 8 GiB.
fn memory_mib() -> String {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total_kib = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.trim().strip_suffix(" kB"))
        .and_then(|number| number.parse::<u64>().ok())
        .unwrap_or(0);
    (total_kib / 2048).clamp(2048, 8192).to_string()
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
