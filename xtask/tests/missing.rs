//! What the chores say where a tool is missing.

use std::process::Command;

/// Runs a chore with no program in reach and an empty target folder; gives its exit status and what it says.
fn without_tools(chore: &str) -> (bool, String) {
    let nothing = std::env::temp_dir().join(format!("advect-xtask-{}-{chore}", std::process::id()));
    std::fs::create_dir_all(&nothing).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .arg(chore)
        .env("PATH", &nothing)
        .env("CARGO_TARGET_DIR", &nothing)
        .env_remove("ADVECT_NVRTC")
        .output()
        .unwrap();
    std::fs::remove_dir_all(&nothing).unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn kernels_asks_for_python() {
    let (success, says) = without_tools("kernels");
    assert!(!success && says.contains("python3") && says.contains("ADVECT_NVRTC"), "{says}");
}

#[test]
fn setup_names_what_to_install() {
    let (success, says) = without_tools("setup");
    // Either a driver is missing, or the drivers are there and NVRTC is not.
    let names_packages = says.contains("apt-get install mesa-vulkan-drivers")
        || says.contains("apt-get install chromium")
        || says.contains("python3-pip");
    assert!(!success && names_packages, "{says}");
}

#[test]
fn test_stops_at_the_set_up() {
    let (success, says) = without_tools("test");
    assert!(!success && says.contains("set-up"), "{says}");
}
