//! CVE-2025-62161, CVE-2025-62596 and CVE-2025-54867: holes in youki's libcontainer that version 0.5.7 closed.

#[test]
fn libcontainer_is_one_without_known_holes() {
    let lock = include_str!("../../Cargo.lock");
    let (_, package) = lock.split_once("name = \"libcontainer\"\n").unwrap();
    let version = package.lines().next().unwrap().split('"').nth(1).unwrap();
    let version: Vec<u32> = version
        .split('.')
        .map(|part| part.parse().unwrap())
        .collect();
    assert!(version >= vec![0, 5, 7], "{version:?}");
}
