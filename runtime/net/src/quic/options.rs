//! The knobs, and what of quinn's defaults would hurt here.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    ops::RangeInclusive,
    sync::Arc,
    time::Duration,
};

use quinn::{
    EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt, congestion::CubicConfig,
};
use rustix::net::sockopt;
use socket2::{Domain, Protocol, Socket, Type};

use super::Error;

/// quinn hands the kernel up to this many segments at once; together they must stay under 64 KiB, or the kernel
/// drops them without a word.
const SEGMENTS_MAX: u16 = 10;
/// Largest UDP payload that IPv4 carries.
const UDP_PAYLOAD_MAX: u16 = 65_507;
/// UDP and IPv6 headers.
const HEADERS_BYTES: u32 = 48;
/// Smallest UDP payload that QUIC can live with.
const MTU_MIN: u16 = *MTU_BYTES.start();
/// What discovery looks for on a network: above it ten segments no longer fit 64 KiB.
const MTU_NETWORK_MAX: u16 = 6500;
/// What loopback carries at once, where its MTU is the usual 65,536.
const MTU_LOOPBACK_MAX: u16 = *MTU_BYTES.end();

/// What [`Mtu::Fixed`] may say, in bytes of UDP payload: from what every path of QUIC carries to what loopback does.
pub const MTU_BYTES: RangeInclusive<u16> = 1200..=65_000;

/// The first packets of a handshake are padded to the least MTU, and their length field holds 14 bits.
const MTU_HANDSHAKE_MAX: u16 = 16_000;

/// UDP payload of a packet, in bytes. Throughput grows with it nearly in proportion: each packet costs a system
/// call's share, a decryption and an acknowledgement's share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mtu {
    /// On loopback what the interface carries (65,000); elsewhere 1200 and then, by probing, up to 6500.
    Auto,
    /// This much from the start, of [`MTU_BYTES`], with no probing. On a path that does not carry it the handshake
    /// works and then data is lost until quinn falls back to 1200.
    Fixed(u16),
}

/// Settings of an [`super::Endpoint`]. Every default is meant for both a laptop and a 100 Gbit/s network.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes that one stream may have in flight or unread. Default 16 MiB. Cost: the memory, once a reader is slow.
    /// Less than bandwidth × round trip and a stream cannot fill the path. quinn's default is 1.25 MB.
    pub stream_window_bytes: u32,
    /// Bytes that all streams of a connection together may have in flight or unread. Default 32 MiB, on loopback no
    /// more than half the socket's receive buffer: what the buffer cannot hold is lost in bursts. quinn's default is
    /// no bound at all, so that a peer could fill our memory.
    pub connection_window_bytes: u32,
    /// Bytes written and not yet acknowledged, for each connection. Default 32 MiB. Cost: the memory, for each slow
    /// peer. Less than bandwidth × round trip and the path stays partly empty.
    pub send_window_bytes: u32,
    /// Silence after which a packet is sent to keep the connection. Default 2 s. Cost: 40 bytes each way. Without
    /// it (quinn's default) idle connections die, and a dead peer is noticed only when something is sent.
    pub keep_alive: Duration,
    /// Silence after which the peer counts as unreachable. Default 10 s; must be over twice `keep_alive`. Longer
    /// means later failover; shorter, that a stopped process or a lost second of network counts as death.
    pub idle_timeout: Duration,
    /// `keep_alive` towards a peer on this machine. Default `None`: the same. A connection counts its silence from the
    /// first packet that was not answered, so a dead peer is noticed after this and the idle timeout together.
    pub keep_alive_loopback: Option<Duration>,
    /// `idle_timeout` towards a peer on this machine. Default `None`: the same. Nothing is lost on the way there, so
    /// silence means a process that is dead or stopped.
    pub idle_timeout_loopback: Option<Duration>,
    /// How long [`super::Endpoint::connect`] and handshakes may take in all. Default 5 s. Too short and a loaded
    /// head never answers in time.
    pub connect_timeout: Duration,
    /// Packet size. Default [`Mtu::Auto`]. At 1200 throughput on loopback is a quarter of that at 65,000.
    pub mtu: Mtu,
    /// Bytes of receive buffer to ask the kernel for. Default 16 MiB. Cost: kernel memory only while full. The kernel
    /// grants `net.core.rmem_max` at most (often 208 KiB) unless the process is privileged; too little loses packets
    /// in every burst. What was granted: [`super::Endpoint::buffers`].
    pub socket_receive_bytes: usize,
    /// Bytes of send buffer to ask the kernel for. Default 4 MiB; bound by `net.core.wmem_max`. Too little and the
    /// sender sleeps between packets.
    pub socket_send_bytes: usize,
    /// Streams that a peer may have open at once on one connection. Default 256. Fewer hold back concurrent pulls;
    /// more cost a few hundred bytes each.
    pub streams_max: u32,
    /// Whether strangers may join here (ALPN `mobula-join/1`). Default false; only heads.
    pub accept_join: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            stream_window_bytes: 16 << 20,
            connection_window_bytes: 32 << 20,
            send_window_bytes: 32 << 20,
            keep_alive: Duration::from_secs(2),
            idle_timeout: Duration::from_secs(10),
            keep_alive_loopback: None,
            idle_timeout_loopback: None,
            connect_timeout: Duration::from_secs(5),
            mtu: Mtu::Auto,
            socket_receive_bytes: 16 << 20,
            socket_send_bytes: 4 << 20,
            streams_max: 256,
            accept_join: false,
        }
    }
}

/// What the kernel granted, in bytes of payload (it books about twice as much for itself).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffers {
    /// Receive buffer.
    pub receive_bytes: usize,
    /// Send buffer.
    pub send_bytes: usize,
}

impl Options {
    pub(super) fn check(&self) -> Result<(), Error> {
        let wrong = |knob, detail: &str| Err(Error::Option { knob, detail: detail.to_owned() });
        let near = self.idle_timeout_loopback.unwrap_or(self.idle_timeout);
        if self.idle_timeout <= self.keep_alive * 2
            || near <= self.keep_alive_loopback.unwrap_or(self.keep_alive) * 2
        {
            return wrong("idle_timeout", "must be over twice keep_alive, or idle connections die");
        }
        if self.idle_timeout > Duration::from_hours(24) {
            return wrong("idle_timeout", "over a day a dead peer is as good as never noticed");
        }
        if let Mtu::Fixed(bytes) = self.mtu
            && !MTU_BYTES.contains(&bytes)
        {
            return wrong("mtu", "must be 1200 to 65000");
        }
        if self.streams_max == 0 || self.stream_window_bytes == 0 || self.connection_window_bytes == 0 {
            return wrong("streams_max and windows", "must not be zero");
        }
        Ok(())
    }

    /// quinn's settings towards `peer`.
    pub(super) fn transport(&self, peer: IpAddr, buffers: Buffers) -> Result<Arc<TransportConfig>, Error> {
        let loopback = peer.to_canonical().is_loopback();
        let window = if loopback {
            let held = u32::try_from(buffers.receive_bytes / 2).unwrap_or(u32::MAX);
            self.connection_window_bytes.min(held.max(1 << 16))
        } else {
            self.connection_window_bytes
        };
        let near = |near: Option<Duration>, far| near.filter(|_| loopback).unwrap_or(far);
        let keep_alive = near(self.keep_alive_loopback, self.keep_alive);
        let idle = near(self.idle_timeout_loopback, self.idle_timeout);
        let idle = IdleTimeout::try_from(idle)
            .map_err(|e| Error::Option { knob: "idle_timeout", detail: e.to_string() })?;
        let mut transport = TransportConfig::default();
        transport
            .stream_receive_window(VarInt::from_u32(self.stream_window_bytes.min(window)))
            .receive_window(VarInt::from_u32(window))
            .send_window(u64::from(self.send_window_bytes))
            .keep_alive_interval(Some(keep_alive))
            .max_idle_timeout(Some(idle))
            .max_concurrent_bidi_streams(VarInt::from_u32(self.streams_max))
            // The greeting is the only one.
            .max_concurrent_uni_streams(VarInt::from_u32(1))
            .datagram_receive_buffer_size(None);
        match (self.mtu, loopback) {
            (Mtu::Auto, true) => {
                let mtu = loopback_mtu();
                // Nothing on loopback is lost for its size: should losses ever make packets smaller, then not by
                // much, and not for long.
                let mut discovery = MtuDiscoveryConfig::default();
                discovery.upper_bound(mtu).black_hole_cooldown(Duration::from_secs(1));
                transport
                    .initial_mtu(mtu)
                    .min_mtu(mtu.min(MTU_HANDSHAKE_MAX))
                    .mtu_discovery_config(Some(discovery));
                transport.enable_segmentation_offload(mtu <= UDP_PAYLOAD_MAX / SEGMENTS_MAX);
                // Losses here are overflows of the receive buffer, which the window already rules out.
                transport.congestion_controller_factory(congestion(mtu, u64::from(window / 4)));
            }
            (Mtu::Auto, false) => {
                let mut discovery = MtuDiscoveryConfig::default();
                discovery.upper_bound(MTU_NETWORK_MAX).interval(Duration::from_mins(2));
                transport.mtu_discovery_config(Some(discovery));
            }
            (Mtu::Fixed(mtu), _) => {
                transport.initial_mtu(mtu).mtu_discovery_config(None);
                transport.congestion_controller_factory(congestion(mtu, 0));
                transport.enable_segmentation_offload(mtu <= UDP_PAYLOAD_MAX / SEGMENTS_MAX);
            }
        }
        Ok(Arc::new(transport))
    }

    pub(super) fn endpoint(&self) -> Result<EndpointConfig, Error> {
        let mut config = EndpointConfig::default();
        config
            .max_udp_payload_size(UDP_PAYLOAD_MAX)
            .map_err(|e| Error::Option { knob: "mtu", detail: e.to_string() })?;
        Ok(config)
    }

    /// Opens the port and its buffers.
    pub(super) fn socket(&self, addr: SocketAddr) -> Result<(UdpSocket, Buffers), Error> {
        let open = || -> io::Result<(UdpSocket, Buffers)> {
            let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
            if addr.is_ipv6() {
                socket.set_only_v6(false)?;
            }
            // Beyond the system's limit only a privileged process gets its wish; the others get the limit.
            if sockopt::set_socket_recv_buffer_size_force(&socket, self.socket_receive_bytes).is_err() {
                socket.set_recv_buffer_size(self.socket_receive_bytes)?;
            }
            if sockopt::set_socket_send_buffer_size_force(&socket, self.socket_send_bytes).is_err() {
                socket.set_send_buffer_size(self.socket_send_bytes)?;
            }
            socket.bind(&addr.into())?;
            // Linux reports twice what it grants.
            let buffers = Buffers {
                receive_bytes: socket.recv_buffer_size()? / 2,
                send_bytes: socket.send_buffer_size()? / 2,
            };
            Ok((socket.into(), buffers))
        };
        let (socket, buffers) = open().map_err(|source| Error::Bind { addr, source })?;
        if buffers.receive_bytes < self.socket_receive_bytes / 4 {
            tracing::info!(
                granted = buffers.receive_bytes,
                wanted = self.socket_receive_bytes,
                "a small UDP receive buffer slows transfers: raise net.core.rmem_max"
            );
        }
        Ok((socket, buffers))
    }
}

/// Congestion control that starts with `window` bytes, and with ten packets at least as quinn's own does. A window
/// smaller than one packet would let nothing out, ever.
fn congestion(mtu: u16, window: u64) -> Arc<CubicConfig> {
    let mut config = CubicConfig::default();
    config.initial_window(window.max(u64::from(mtu) * 10));
    Arc::new(config)
}

/// What loopback carries; an interface made smaller than usual is believed.
fn loopback_mtu() -> u16 {
    let interface = std::fs::read_to_string("/sys/class/net/lo/mtu").ok();
    let carried = interface.and_then(|text| text.trim().parse::<u32>().ok()).unwrap_or(u32::from(MTU_MIN));
    let payload =
        carried.saturating_sub(HEADERS_BYTES).clamp(u32::from(MTU_MIN), u32::from(MTU_LOOPBACK_MAX));
    u16::try_from(payload).unwrap_or(MTU_MIN)
}
