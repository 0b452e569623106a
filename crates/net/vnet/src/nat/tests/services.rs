//! Tests of what a network offers by itself: the proxy, names, TFTP, DHCPv6, fragments.

use super::*;

#[test]
fn proxy_leads_to_the_guest_by_address_and_by_name() {
    let mut guest = guest(NatConfig {
        proxy: Some("127.0.0.1:0".parse().unwrap()),
        restricted: true,
        ..NatConfig::default()
    });
    let at = guest.nat.proxy().unwrap();
    assert_eq!(guest.nat.address_of(GUEST_MAC), Some([10, 0, 2, 15].into()));
    guest.nat.name(GUEST_MAC, Some("web".to_owned()));
    for address in [
        &b"\x01\x0a\x00\x02\x0f"[..],
        b"\x03\x03web",
        b"\x03\x12web.oxbow.internal",
    ] {
        let handle = guest.add();
        guest.socket(handle).listen(80).unwrap();
        let request = [&[5, 1, 0], address, &[0, 80]].concat();
        let client = thread::spawn(move || {
            let mut stream = TcpStream::connect(at).unwrap();
            stream.write_all(&[5, 1, 0]).unwrap();
            let mut agreed = [0; 2];
            stream.read_exact(&mut agreed).unwrap();
            stream.write_all(&request).unwrap();
            let mut answer = [0; 10];
            stream.read_exact(&mut answer).unwrap();
            stream.write_all(b"hello").unwrap();
            (agreed, answer[1])
        });
        let mut got = Vec::new();
        guest.until(|guest| {
            let socket = guest.socket(handle);
            if socket.can_recv() {
                socket.recv(|data| (data.len(), got.extend_from_slice(data))).unwrap();
            }
            got == b"hello"
        });
        assert_eq!(client.join().unwrap(), ([5, 0], 0));
        guest.sockets.remove(handle);
    }
    // Nobody is there, and nobody may be.
    for address in [&b"\x03\x06nobody"[..], b"\x01\xc0\x00\x02\x01", b"\x01\x0a\x00\x02\x02"] {
        let mut stream = TcpStream::connect(at).unwrap();
        stream
            .write_all(&[&[5, 1, 0, 5, 1, 0], address, &[0, 80]].concat())
            .unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer[3], 4);
    }
}

#[test]
fn names_of_guests_are_known_and_others_refused_where_nobody_is_reached() {
    let guest = guest(NatConfig {
        restricted: true,
        ..NatConfig::default()
    });
    guest.nat.address_of(GUEST_MAC).unwrap();
    guest.nat.name(GUEST_MAC, Some("web".to_owned()));
    let ask = |name: &[u8]| {
        let question = [&[7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0], name, &[0, 0, 1, 0, 1]].concat();
        guest.card.send_udp("10.0.2.3", (1024, 53), &question);
        let frame = guest
            .card
            .wait(|packet| packet.protocol == UDP && packet.ports().unwrap().0.port() == 53);
        Packet::of(&frame.bytes).unwrap().payload[8..].to_vec()
    };
    assert!(ask(b"\x03web").ends_with(&[10, 0, 2, 15]));
    assert_eq!(ask(b"\x07example\x03org")[3] & 15, 5);
}

#[test]
fn file_comes_by_tftp() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("boot"), [9; 700]).unwrap();
    let guest = guest(NatConfig {
        tftp: Some(dir.path().to_owned()),
        ..NatConfig::default()
    });
    guest.card.send_udp("10.0.2.2", (2070, 69), b"\0\x01boot\0octet\0");
    let came = |guest: &Guest| guest.card.wait(|packet| packet.protocol == UDP);
    let first = came(&guest);
    let first = Packet::of(&first.bytes).unwrap();
    let port = first.ports().unwrap().0.port();
    assert_eq!(first.payload[8..].len(), 4 + 512);
    guest.card.send_udp("10.0.2.2", (2070, port), &[0, 4, 0, 1]);
    let second = came(&guest);
    assert_eq!(Packet::of(&second.bytes).unwrap().payload[8..].len(), 4 + 188);
}

#[test]
fn guest_gets_its_address_by_dhcpv6() {
    let guest = guest(NatConfig::default());
    let way = Way {
        to_mac: [0x33, 0x33, 0, 1, 0, 2],
        from_mac: GUEST_MAC,
        from: "fe80::f".parse().unwrap(),
        to: "ff02::1:2".parse().unwrap(),
    };
    let mut solicit = vec![1, 1, 2, 3, 0, 1, 0, 2, 9, 9, 0, 3, 0, 12];
    solicit.extend([0; 12]);
    let mut frame = packet::datagram(&way, 546, 547, &solicit).unwrap();
    crate::offload::fill_checksum(&mut frame).unwrap();
    guest.card.port.send(frame).unwrap();
    let answer = guest.card.wait(|packet| packet.protocol == UDP);
    let answer = Packet::of(&answer.bytes).unwrap();
    assert_eq!(
        answer.ports().unwrap(),
        ("[fe80::2]:547".parse().unwrap(), "[fe80::f]:546".parse().unwrap())
    );
    assert_eq!(answer.payload[8..12], [2, 1, 2, 3]);
}

#[test]
fn long_datagram_goes_and_comes_in_fragments() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let echo = thread::spawn(move || {
        let mut buffer = vec![0; 65_536];
        let (len, from) = server.recv_from(&mut buffer).unwrap();
        server.send_to(&buffer[..len], from).unwrap();
    });
    let guest = guest(loopback());
    let payload = pattern(8000);
    let frame = packet::datagram(&guest.card.way("10.0.2.2"), 1024, port, &payload).unwrap();
    let sent = fragments::split(frame, 1500);
    assert_eq!(sent.len(), 6);
    sent.into_iter()
        .for_each(|fragment| guest.card.port.send(fragment).unwrap());
    let mut assembler = fragments::Assembler::default();
    let end = Instant::now() + PATIENCE;
    let whole = loop {
        assert!(Instant::now() < end, "nothing comes back");
        let Some(frame) = guest.card.port.receive() else {
            thread::sleep(Duration::from_millis(1));
            continue;
        };
        assert!(frame.bytes.len() <= 1514);
        if let Some(whole) = assembler.take(&frame.bytes, Instant::now()) {
            break whole;
        }
    };
    assert!(Packet::of(&whole.bytes).unwrap().payload[8..] == payload);
    echo.join().unwrap();
}

#[test]
fn tshark_reads_the_capture() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("x.pcap");
    let guest = guest(NatConfig {
        restricted: true,
        ..NatConfig::default()
    });
    let capture = crate::Capture::create(&file).unwrap();
    guest.card.port.set_capture(Some(Arc::new(capture)));
    let question = b"\x07\x07\x01\0\0\x01\0\0\0\0\0\0\x03web\x05oxbow\x08internal\0\0\x01\0\x01";
    guest.card.send_udp("10.0.2.3", (1024, 53), question);
    guest.card.wait(|packet| packet.protocol == UDP);
    let mut tshark = std::process::Command::new("tshark");
    // Checksums are looked at, and what is wrong is an expert's matter.
    tshark.args([
        "-o",
        "udp.check_checksum:TRUE",
        "-o",
        "ip.check_checksum:TRUE",
        "-T",
        "fields",
    ]);
    tshark.args([
        "-e",
        "dns.qry.name",
        "-e",
        "dns.flags.rcode",
        "-e",
        "_ws.expert.message",
        "-r",
    ]);
    let Ok(said) = tshark.arg(&file).output() else {
        eprintln!("SKIPPED: tshark is not installed");
        return;
    };
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let lines: Vec<&str> = said.lines().map(str::trim_end).collect();
    assert_eq!(lines, ["web.oxbow.internal", "web.oxbow.internal\t3"], "{said}");
}
