//! Which names in a request are this instance's. Pure.
//!
//! A page of another site can have its own name resolve to this machine, and its script then reads what is served here: the
//! browser takes it for the same origin. The name that it asks for gives it away.

use std::net::IpAddr;

/// Returns `true` if a `Host` is an address, `localhost` or one of these names, with or without a port.
pub(super) fn is_ours(host: &str, hosts: &[String]) -> bool {
    let name = name(host);
    let is_address = name.parse::<IpAddr>().is_ok();
    let mut names = hosts.iter().map(String::as_str).chain(["localhost"]);
    is_address || names.any(|ours| ours.eq_ignore_ascii_case(name))
}

/// The name without its port, without the brackets of an address, and without the dot at its end.
fn name(host: &str) -> &str {
    if let Some((address, _)) = host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return address;
    }
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    name.strip_suffix('.').unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_localhost_and_the_names_that_are_set_are_ours() {
        let hosts = ["bgworker.example".to_owned()];
        for (host, expected) in [
            ("127.0.0.1", true),
            ("127.0.0.1:9187", true),
            ("[::1]:9187", true),
            ("[::1]", true),
            ("10.1.2.3:80", true),
            ("localhost", true),
            ("LocalHost:9187", true),
            ("localhost.:9187", true),
            ("bgworker.example", true),
            ("BGWORKER.example.:9187", true),
            ("evil.example:9187", false),
            ("bgworker.example.evil.example", false),
            ("localhost.evil.example", false),
            ("127.0.0.1.evil.example:9187", false),
            ("[evil]:9187", false),
            ("localhost:9187:evil", false),
            ("", false),
        ] {
            assert_eq!(is_ours(host, &hosts), expected, "{host}");
        }
    }
}
