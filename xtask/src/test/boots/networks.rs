//! Networks in namespaces of their own: a world with servers, a host that runs machines, a neighbour with a bridge between. What
//! guests reach, what nobody sees, and what is left when processes are killed.

pub(crate) mod server;
mod space;

use std::io::BufRead;
use std::io::BufReader;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::ensure;

use super::Case;
use super::Lab;
use super::Skip;
use super::cases::no_complaints;
use super::cases::says;
use super::net::switch_of;
use crate::boot::Boot;
use crate::boot::Seen;
use crate::guests::tools;
use crate::process;
use crate::workspace;
use server::ADDRESS;
use server::ADDRESS6;
use server::NAME;
use server::OTHER;
use space::Space;

pub(super) const CASES: [Case; 10] = [
    case("networks_boot_the_pc_by_e1000", boot_by_network),
    case("networks_boot_the_q35_by_virtio", boot_by_network),
    case("networks_boot_the_uefi_pc_by_e1000", boot_by_network),
    case(
        "networks_nat_reaches_what_the_host_reaches",
        nat_reaches_what_the_host_reaches,
    ),
    // Long: it runs if it is asked for.
    Case {
        extra: true,
        ..case("networks_nat_carries_a_gibibyte", nat_carries_a_gibibyte)
    },
    case(
        "networks_natnetwork_outlives_its_processes",
        natnetwork_outlives_its_processes,
    ),
    case("networks_hostonly_has_the_host_in_it", hostonly_has_the_host_in_it),
    case("networks_hostonly_needs_no_root", hostonly_needs_no_root),
    case("networks_bridged_guest_is_a_neighbour", bridged_guest_is_a_neighbour),
    case("networks_internal_is_seen_by_nobody", internal_is_seen_by_nobody),
];

const fn case(name: &'static str, check: fn(&Lab) -> anyhow::Result<()>) -> Case {
    Case {
        name,
        check,
        extra: false,
    }
}

/// How long a guest may take to say something.
const LIMIT: Duration = Duration::from_secs(300);
/// How long machines may take to have their network again.
const AGAIN: Duration = Duration::from_secs(2);
/// MiB that a guest fetches, and when there is time.
const PIECES: u32 = 24;
const FETCHED: u32 = 1024;
/// Connections that a guest holds.
const CONNECTIONS: u32 = 2000;

/// What all scripts begin with: the card's driver, and how to get an address and a name.
const PRELUDE: &str = r#"
for m in virtio virtio_ring virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_mmio failover net_failover virtio_net; do
    insmod /lib/modules/$m.ko
done
cat >/tmp/leased <<'EOF'
#!/bin/sh
test -n "$ip" || exit 0
ifconfig $interface $ip netmask $subnet
test -n "$router" && route add default gw $router
rm -f /etc/resolv.conf
for one in $dns; do echo nameserver $one >>/etc/resolv.conf; done
echo "@lease $ip"
EOF
chmod +x /tmp/leased
mkdir -p /etc
export PATH=/bin:/usr/bin:/usr/sbin
ip link set lo up
ip link set eth0 up
lease() { udhcpc -i eth0 -n -q -t 20 -T 1 -x hostname:$1 -s /tmp/leased; }
served() { until nc web 9 >/tmp/served && test -s /tmp/served; do sleep .2; done 2>/dev/null; cat /tmp/served; }
until_ok() { until "$@" >/dev/null 2>&1; do sleep .1; done; }
"#;

/// A boot in a namespace of a guest that runs a script, with one virtio card.
fn boot(lab: &Lab, space: &Space, name: &str, nic: &str, script: &str) -> anyhow::Result<Boot> {
    let dir = workspace::guests_dir().join("network-tools");
    let initrd = dir.join(format!("{}-{name}.cpio", lab.name));
    std::fs::create_dir_all(&dir)?;
    let guest = tools::with_script(lab.guest("demo")?, &format!("{PRELUDE}{script}"), &initrd)?;
    let boot = Boot::new(lab.oxbow, &guest, "console=ttyS0 panic=-1 oxbow_run=\"sh /test.sh\"");
    let boot = boot.with(&["--memory", "256M", "--nic", &format!("{nic},model=virtio")]);
    Ok(boot.by(&["ip", "netns", "exec", &space.name]))
}

fn ended_well(seen: &Seen) -> anyhow::Result<()> {
    ensure!(seen.status == Some(0), "the machine did not power off: {}", seen.errors);
    no_complaints(seen)
}

/// A world with servers, and a host at it.
struct World {
    host: Space,
    // Dropped before its namespace.
    _servers: space::Running,
    _world: Space,
}

fn world() -> anyhow::Result<World> {
    world_with(Path::new("/"))
}

/// A world whose web server has the files of a directory.
fn world_with(files: &Path) -> anyhow::Result<World> {
    let (world, host) = (Space::new()?, Space::new()?);
    world.link("world0", &host, "host0")?;
    world.run(&format!(
        "ip addr add {ADDRESS}/24 dev world0; ip addr add {OTHER}/24 dev world0; \
         ip -6 addr add {ADDRESS6}/64 dev world0 nodad"
    ))?;
    host.run(&format!(
        "ip addr add 192.0.2.2/24 dev host0; ip route add default via {ADDRESS}; \
         ip -6 addr add 2001:db8::2/64 dev host0 nodad; ip -6 route add default via {ADDRESS6}; \
         ip route add {OTHER} dev host0 mtu 1400; \
         echo 0 2147483647 >/proc/sys/net/ipv4/ping_group_range"
    ))?;
    host.set_resolver(&ADDRESS.to_string())?;
    let servers = world.serve(files)?;
    Ok(World {
        host,
        _servers: servers,
        _world: world,
    })
}

/// Keys of a user for SSH, in a directory of their own.
struct Keys {
    dir: PathBuf,
    public: String,
}

impl Keys {
    fn new(name: &str) -> anyhow::Result<Self> {
        let dir = std::env::temp_dir().join(format!("oxbow-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir)?;
        let key = dir.join("key");
        let _ = std::fs::remove_file(&key);
        let mut keygen = Command::new("ssh-keygen");
        process::output(keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key))?;
        let public = std::fs::read_to_string(key.with_extension("pub"))?.trim().to_owned();
        Ok(Self { dir, public })
    }

    /// Runs a command in a guest, by a port of a host's, until the guest lets us in.
    fn ask(&self, space: &Space, port: u16, command: &str) -> anyhow::Result<String> {
        let end = Instant::now() + LIMIT / 5;
        loop {
            let mut ssh = space.command("ssh");
            ssh.args(["-p", &port.to_string(), "-i"]).arg(self.dir.join("key"));
            for option in [
                "BatchMode=yes",
                "StrictHostKeyChecking=no",
                "UserKnownHostsFile=/dev/null",
                "ConnectTimeout=60",
            ] {
                ssh.args(["-o", option]);
            }
            match process::output(ssh.args(["root@127.0.0.1", command])) {
                Ok(said) => return Ok(said),
                Err(error) => ensure!(Instant::now() < end, "{error:#}"),
            }
            thread::sleep(Duration::from_millis(500));
        }
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Watches a boot while `user` does something, which is given what its console says.
fn meanwhile(
    lab: &Lab,
    boot: &Boot,
    user: impl FnOnce() -> anyhow::Result<()> + Send,
    judge: impl FnOnce(&Seen) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let (used, watched) = thread::scope(|scope| {
        let user = scope.spawn(user);
        let watched = lab.watch(boot, judge);
        (user.join(), watched)
    });
    watched?;
    used.map_err(|_| anyhow::anyhow!("the user panicked"))?
}

fn nat_reaches_what_the_host_reaches(lab: &Lab) -> anyhow::Result<()> {
    space::check(&["ssh", "ssh-keygen"])?;
    let world = world()?;
    let keys = Keys::new(lab.name)?;
    let script = format!(
        "lease guest\n\
         mkdir -p /root/.ssh; echo '{public}' >/root/.ssh/authorized_keys; chmod -R go= /root; dropbear -R -s\n\
         ping -c 2 {ADDRESS} >/dev/null; echo @ping-$?\n\
         until_ok ping6 -c 1 {ADDRESS6}; echo @ping6\n\
         wget -q -O - http://{ADDRESS}/{PIECES} | sha256sum; wget -q -O - http://[{ADDRESS6}]/{PIECES} | sha256sum\n\
         flows udp {ADDRESS}:7 8000; flows udp [{ADDRESS6}]:7 8000\n\
         flows udp {OTHER}:7 1450\n\
         ulimit -n 4096; flows tcp {ADDRESS}:7 {CONNECTIONS}\n\
         echo @named $(nslookup -type=a {NAME} | grep Address | tail -n 1)\n\
         until nslookup -type=a {NAME} | grep -q {OTHER}; do sleep .2; done; echo @renamed\n\
         while test ! -e /tmp/done; do sleep .1; done\n",
        public = keys.public
    );
    let boot = boot(lab, &world.host, "guest", "nat", &script)?.with(&["--forward", "tcp:127.0.0.1:2222-:22"]);
    let told = boot.told();
    let hash = hash_of(PIECES)?;
    let user = || {
        told.wait_for_line("@named", &mut 0, LIMIT)?;
        world.host.set_resolver(&OTHER.to_string())?;
        told.wait_for_line("@renamed", &mut 0, LIMIT)?;
        let said = keys.ask(&world.host, 2222, "uname -n; touch /tmp/done")?;
        ensure!(said.trim() == "oxbow", "the guest says {said:?}");
        Ok(())
    };
    meanwhile(lab, &boot, user, |seen| {
        ended_well(seen)?;
        says(seen, "@lease 10.0.2.15")?;
        says(seen, "@ping-0")?;
        says(seen, "@ping6")?;
        says(seen, &format!("@held {CONNECTIONS}"))?;
        says(seen, &format!("@named Address: {ADDRESS}"))?;
        // The host's way there is narrower than the guest's cable: the guest has been told so, and splits.
        says(seen, "@echoed 1450 at attempt 2")?;
        let count = |text: &str| seen.lines.iter().filter(|line| line.text.contains(text)).count();
        ensure!(count(&hash) == 2, "{} of 2 files came as they are", count(&hash));
        ensure!(count("@echoed 8000") == 2, "long datagrams did not come back");
        Ok(())
    })
}

/// The hash of the first `count` pieces of the web server's file, as `sha256sum` says it.
fn hash_of(count: u32) -> anyhow::Result<String> {
    use std::io::Write;
    let mut child = Command::new("sha256sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut input = child.stdin.take().context("no input")?;
    for index in 0..count {
        input.write_all(&server::piece(index))?;
    }
    drop(input);
    let said = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    Ok(said.split_whitespace().next().context("no hash")?.to_owned())
}

fn nat_carries_a_gibibyte(lab: &Lab) -> anyhow::Result<()> {
    space::check(&[])?;
    let world = world()?;
    let script = format!("lease guest; wget -q -O - http://{ADDRESS}/{FETCHED} | sha256sum\n");
    let boot = boot(lab, &world.host, "guest", "nat", &script)?;
    let hash = hash_of(FETCHED)?;
    lab.watch(&boot, |seen| {
        ended_well(seen)?;
        says(seen, &hash)
    })
}

/// Kills the switch of a network, and waits for another.
fn kill(wanted: &str) -> anyhow::Result<()> {
    let old = switch_of(wanted).context("the network has no switch")?;
    process::output(Command::new("kill").args(["-9", &old.to_string()]))?;
    let killed = Instant::now();
    while switch_of(wanted).is_none_or(|new| new == old) {
        ensure!(killed.elapsed() < AGAIN, "nobody starts another switch");
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Starts a machine, waits for it to be at its network, and kills it.
fn kill_member(boot: &Boot) -> anyhow::Result<()> {
    let mut command = boot.command();
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = command.spawn()?;
    let out = child.stdout.take().context("no output")?;
    let leased = BufReader::new(out)
        .split(b'\n')
        .map_while(Result::ok)
        .any(|line| line.starts_with(b"@lease"));
    child.kill()?;
    child.wait()?;
    ensure!(leased, "it got no address");
    Ok(())
}

fn natnetwork_outlives_its_processes(lab: &Lab) -> anyhow::Result<()> {
    space::check(&[])?;
    let world = world()?;
    let network = format!("test{}", std::process::id());
    // The one knows the other by the name that its machine gives it, the other that one by what it calls itself.
    let serves = "lease second; echo served >/tmp/f; (while true; do nc -l -p 9 </tmp/f; done) &\n\
                  until_ok ping -c 1 -W 1 first; echo @first; nc -l -p 10; echo @done\n";
    let fetches = format!(
        "lease first\n\
         until_ok ping -c 1 -W 1 web.oxbow.internal; echo @web $(served)\n\
         echo @fetched $(wget -q -O - http://{ADDRESS}/1 | sha256sum)\n\
         (while true; do nc -l -p 7 -e cat; done) & echo @before\n\
         while test ! -e /tmp/go; do nc -l -p 8 >/tmp/go; done\n\
         echo @again $(served); echo @refetched $(wget -q -O - http://{ADDRESS}/1 | sha256sum); echo end | nc web 10\n"
    );
    let nic = format!("natnetwork={network}");
    let second = boot(lab, &world.host, "second", &format!("{nic},name=web"), serves)?;
    let first = boot(lab, &world.host, "first", &nic, &fetches)?;
    let first = first.with(&[
        "--forward",
        "tcp:127.0.0.1:2207-:7",
        "--forward",
        "tcp:127.0.0.1:2208-:8",
    ]);
    let third = boot(lab, &world.host, "third", &nic, "lease third; sleep 1000\n")?;
    let (hash, told) = (hash_of(1)?, first.told());
    let user = || {
        told.wait_for_line("@before", &mut 0, LIMIT)?;
        let back = |limit| speaks_until(&world.host, "127.0.0.1:2207", limit);
        back(LIMIT)?;
        kill_member(&third)?;
        back(AGAIN)?;
        let wanted = format!("\"name\":\"{network}\"");
        kill(&wanted)?;
        back(AGAIN)?;
        world.host.run("echo go | socat - tcp:127.0.0.1:2208")?;
        Ok(())
    };
    let other = thread::scope(|scope| {
        let second = scope.spawn(|| second.watch());
        let seen = meanwhile(lab, &first, user, |seen| {
            ended_well(seen)?;
            for part in ["@web served", "@again served"] {
                says(seen, part)?;
            }
            for part in ["@fetched", "@refetched"] {
                says(seen, &format!("{part} {hash}"))?;
            }
            Ok(())
        });
        seen.and(second.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?)
    })?;
    ended_well(&other)?;
    says(&other, "@first")?;
    says(&other, "@done")
}

/// Speaks to an echo from a host until it answers.
fn speaks_until(space: &Space, to: &str, limit: Duration) -> anyhow::Result<()> {
    let end = Instant::now() + limit;
    loop {
        let said = space.run(&format!("echo hello | timeout 2 socat -t 1 - tcp:{to}"));
        if said.as_ref().is_ok_and(|said| said.trim() == "hello") {
            return Ok(());
        }
        ensure!(Instant::now() < end, "no answer: {said:?}");
        thread::sleep(Duration::from_millis(50));
    }
}

fn hostonly_has_the_host_in_it(lab: &Lab) -> anyhow::Result<()> {
    space::check(&["socat"])?;
    let host = Space::new()?;
    let network = format!("t{}", std::process::id());
    let script = "lease guest; until_ok ping -c 1 -W 1 192.168.56.1; echo @host\n\
                  (while true; do nc -l -p 7 -e cat; done) & echo @listening\n\
                  nc 192.168.56.1 9; nc -l -p 10; echo @done\n";
    let boot = boot(lab, &host, "guest", &format!("hostonly={network}"), script)?;
    let told = boot.told();
    let answers = |limit: Duration| speaks_until(&host, "192.168.56.101:7", limit);
    let user = || {
        let _greeter = host.start("socat", &["tcp-listen:9,reuseaddr", "system:echo @greeted"])?;
        told.wait_for_line("@greeted", &mut 0, LIMIT)?;
        answers(LIMIT)?;
        kill(&format!("\"name\":\"{network}\""))?;
        answers(AGAIN)?;
        host.run("echo end | socat - tcp:192.168.56.101:10").map(drop)
    };
    meanwhile(lab, &boot, user, |seen| {
        ended_well(seen)?;
        says(seen, "@lease 192.168.56.101")?;
        says(seen, "@done")
    })?;
    // The switch goes when it has been alone for a while, and its tap with it.
    let end = Instant::now() + Duration::from_secs(10);
    while host.run("ip -o link")?.contains("ox-") {
        ensure!(Instant::now() < end, "the tap stays");
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// A user without rights, by `setpriv`.
const NOBODY: [&str; 6] = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];

fn hostonly_needs_no_root(lab: &Lab) -> anyhow::Result<()> {
    space::check(&["setpriv", "socat", "curl"])?;
    let host = Space::new()?;
    let script = "lease guest; nc 192.168.56.1 9\n\
                  echo 'printf \"HTTP/1.0 200 OK\\r\\n\\r\\nserved\\n\"' >/tmp/web; chmod +x /tmp/web\n\
                  (while true; do nc -l -p 80 -e sh /tmp/web; done) & nc -l -p 10; echo @done\n";
    let nic = format!("hostonly=t{},proxy=1080,loopback,name=web", std::process::id());
    let boot = boot(lab, &host, "guest", &nic, script)?.by(&NOBODY);
    let mut may = host.command("setpriv");
    may.args(&NOBODY[1..]).arg(lab.oxbow).arg("--version");
    if process::output(&mut may).is_err() {
        return Err(Skip("users without rights cannot run what was built here".to_owned()).into());
    }
    let told = boot.told();
    let user = || {
        let _greeter = host.start(
            "socat",
            &["tcp-listen:9,bind=127.0.0.1,reuseaddr", "system:echo @greeted"],
        )?;
        told.wait_for_line("@greeted", &mut 0, LIMIT)?;
        let fetch = "curl -s --socks5-hostname 127.0.0.1:1080 --retry 20 --retry-all-errors --retry-delay 1";
        for name in ["web", "web.oxbow.internal", "192.168.56.101"] {
            let said = host.run(&format!("{fetch} http://{name}/"))?;
            ensure!(said.trim() == "served", "{name} says {said:?}");
        }
        let links = host.run("ip -o link")?;
        ensure!(links.lines().count() == 1, "there are interfaces: {links}");
        host.run("echo end | curl -s -m 2 --socks5-hostname 127.0.0.1:1080 telnet://web:10 || true")
            .map(drop)
    };
    meanwhile(lab, &boot, user, |seen| {
        ended_well(seen)?;
        says(seen, "@lease 192.168.56.101")?;
        says(seen, "@done")
    })
}

fn bridged_guest_is_a_neighbour(lab: &Lab) -> anyhow::Result<()> {
    space::check(&["dnsmasq"])?;
    let (host, far) = (Space::new()?, Space::new()?);
    host.link("port0", &far, "far0")?;
    host.run("ip link add br0 type bridge; ip link set port0 master br0; ip link set br0 up")?;
    far.run("ip addr add 10.99.0.1/24 dev far0")?;
    let words = [
        "--no-daemon",
        "--conf-file=/dev/null",
        "--port=0",
        "--bind-interfaces",
        "--interface=far0",
    ];
    let server = [
        &words[..],
        &["--dhcp-range=10.99.0.50,10.99.0.60,1h", "--dhcp-leasefile=/dev/null"],
    ]
    .concat();
    let _server = far.start("dnsmasq", &server)?;
    let script = "lease guest; until_ok ping -c 1 -W 1 10.99.0.1; echo @neighbour\n";
    let judge = |seen: &Seen| {
        ended_well(seen)?;
        says(seen, "@lease 10.99.0.")?;
        says(seen, "@neighbour")
    };
    lab.watch(&boot(lab, &host, "bridge", "bridged=br0", script)?, judge)?;
    let left = host.run("ip -o link")?;
    ensure!(!left.contains("oxbow"), "the tap stays: {left}");
    // Without a bridge the card itself is shared.
    host.run("ip link set port0 nomaster; ip link del br0")?;
    lab.watch(&boot(lab, &host, "card", "bridged=port0", script)?, judge)
}

/// The test's name says which machine boots, and by which card: SeaBIOS or UEFI, iPXE, a script and a kernel by TFTP, an initial RAM disk
/// by HTTP from the world.
fn boot_by_network(lab: &Lab) -> anyhow::Result<()> {
    space::check(&[])?;
    let machine = if lab.name.contains("q35") { "q35" } else { "pc" };
    let model = lab.name.rsplit('_').next().context("no card")?;
    let uefi = lab.name.contains("uefi");
    let firmware = match uefi {
        true => "/usr/share/OVMF/OVMF_CODE_4M.fd",
        false => "/usr/share/seabios/bios-256k.bin",
    };
    let needed = [format!("/usr/lib/ipxe/qemu/efi-{model}.rom"), firmware.to_owned()];
    if let Some(missing) = needed.iter().find(|path| !Path::new(path).is_file()) {
        return Err(Skip(format!("{missing} is not here: apt-get install ipxe-qemu seabios ovmf")).into());
    }
    let guest = lab.guest("demo")?;
    let dir = std::env::temp_dir().join(format!("oxbow-{}-{}", lab.name, std::process::id()));
    std::fs::create_dir_all(&dir)?;
    std::fs::copy(&guest.kernel, dir.join("vmlinuz"))?;
    std::fs::copy(&guest.initrd, dir.join(server::INITRD))?;
    let script = format!(
        "#!ipxe\n\
         kernel tftp://${{next-server}}/vmlinuz console=ttyS0 panic=-1 demo=batch initrd={initrd} || goto failed\n\
         initrd http://{ADDRESS}/{initrd} || goto failed\n\
         boot\n:failed\npoweroff\n",
        initrd = server::INITRD
    );
    std::fs::write(dir.join("boot.ipxe"), script)?;
    let world = world_with(&dir)?;
    let nic = format!("nat,tftp={},bootfile=boot.ipxe,model={model}", dir.display());
    let boot = Boot::firmware(lab.oxbow, machine).by(&["ip", "netns", "exec", &world.host.name]);
    let boot = boot.with(&["--memory", "512M", "--boot-order", "network", "--nic", &nic]);
    let boot = if uefi { boot.with(&["--uefi"]) } else { boot };
    let watched = lab.watch(&boot, |seen| {
        ended_well(seen)?;
        says(seen, "@@end 0")
    });
    std::fs::remove_dir_all(&dir)?;
    watched
}

fn internal_is_seen_by_nobody(lab: &Lab) -> anyhow::Result<()> {
    space::check(&["tcpdump"])?;
    let host = Space::new()?;
    let network = format!("test{}", std::process::id());
    let answers = "ifconfig eth0 10.77.0.1; nc -l -p 10; echo @done\n";
    let asks = "ifconfig eth0 10.77.0.2; until_ok ping -c 1 -W 1 10.77.0.1; ping -c 5 10.77.0.1 >/dev/null && echo @heard\n\
                until echo end | nc 10.77.0.1 10; do sleep .2; done\n";
    let nic = format!("internal={network}");
    let (first, second) = (
        boot(lab, &host, "first", &nic, answers)?,
        boot(lab, &host, "second", &nic, asks)?,
    );
    let capture = std::env::temp_dir().join(format!("oxbow-{}-{}.pcap", lab.name, std::process::id()));
    let path = capture.to_string_lossy().into_owned();
    let tcpdump = host.start("tcpdump", &["-i", "any", "-U", "-w", &path])?;
    let other = thread::scope(|scope| {
        let first = scope.spawn(|| first.watch());
        let seen = lab.watch(&second, |seen| {
            ended_well(seen)?;
            says(seen, "@heard")
        });
        // The first one waits for the second: without it, it is not to be waited for.
        seen.and(first.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?)
    })?;
    says(&other, "@done")?;
    process::output(Command::new("kill").arg(tcpdump.id().to_string()))?;
    thread::sleep(Duration::from_millis(500));
    let bytes = std::fs::read(&capture)?;
    std::fs::remove_file(&capture)?;
    // The header of a file without frames.
    ensure!(bytes.len() == 24, "the host has seen {} bytes of frames", bytes.len());
    Ok(())
}
