//! Finding virtio devices, and the memory they share with the drivers.

use crate::cpu::apic;
use crate::log;
use alloc::alloc::{alloc_zeroed, dealloc};
use core::alloc::Layout;
use core::ptr::NonNull;
use understudy_workload::options::{MmioDevice, Options};
use virtio_drivers::transport::DeviceType;
use virtio_drivers::transport::mmio::{MmioTransport, VirtIOHeader};
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

/// Devices live in the MMIO hole, which is mapped uncached.
const MMIO_HOLE: core::ops::Range<u64> = 0xc000_0000..0xfec0_0000;

/// Physical and virtual addresses are the same, and devices see all of RAM.
pub(crate) struct IdentityHal;

fn pages_layout(pages: usize) -> Layout {
    Layout::from_size_align(pages * PAGE_SIZE, PAGE_SIZE).expect("queues are small")
}

// SAFETY: `dma_alloc` returns zeroed, page-aligned heap memory that nothing else owns until
// `dma_dealloc`; all addresses are identity mapped.
unsafe impl Hal for IdentityHal {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        // SAFETY: the drivers never ask for zero pages, so the layout has a size.
        let address = unsafe { alloc_zeroed(pages_layout(pages)) };
        let address = NonNull::new(address).expect("the heap has room for the queues");
        (address.as_ptr() as PhysAddr, address)
    }

    unsafe fn dma_dealloc(_physical: PhysAddr, address: NonNull<u8>, pages: usize) -> i32 {
        // SAFETY: the caller passes what `dma_alloc` returned, with the same number of pages.
        unsafe { dealloc(address.as_ptr(), pages_layout(pages)) };
        0
    }

    unsafe fn mmio_phys_to_virt(physical: PhysAddr, _bytes: usize) -> NonNull<u8> {
        NonNull::new(physical as *mut u8).expect("devices are not at address 0")
    }

    unsafe fn share(buffer: NonNull<[u8]>, _direction: BufferDirection) -> PhysAddr {
        buffer.cast::<u8>().as_ptr() as PhysAddr
    }

    unsafe fn unshare(_physical: PhysAddr, _buffer: NonNull<[u8]>, _direction: BufferDirection) {}
}

/// Where a register window tells the device's type.
const DEVICE_ID_REGISTER: u64 = 8;

/// The first device of a type on the command line. Later calls must ask for other types.
///
/// Devices of other types are not touched: a transport resets its device when it is dropped.
pub(crate) fn find(
    options: &Options,
    device_type: DeviceType,
) -> Option<(MmioDevice, MmioTransport<'static>)> {
    let devices = options.devices.iter().flatten();
    let mut of_the_type = devices.filter(|device| type_of(device) == Some(device_type as u32));
    of_the_type.find_map(|device| Some((*device, open(device)?)))
}

fn type_of(device: &MmioDevice) -> Option<u32> {
    if !MMIO_HOLE.contains(&device.base)
        || !device.base.is_multiple_of(4096)
        || device.bytes < 0x200
    {
        log!("virtio: no device can be at {device}");
        return None;
    }
    // SAFETY: the address is aligned and in the MMIO hole, which is mapped and holds no memory; reading a
    // virtio-mmio identification register, or where nothing is, changes nothing.
    Some(unsafe { core::ptr::read_volatile((device.base + DEVICE_ID_REGISTER) as *const u32) })
}

fn open(device: &MmioDevice) -> Option<MmioTransport<'static>> {
    let header = NonNull::new(device.base as *mut VirtIOHeader)?;
    // SAFETY: the VMM says a virtio-mmio register window lies there (`type_of` checked where); it is mapped
    // for ever, and only one driver is made for each device.
    match unsafe { MmioTransport::new(header, device.bytes.min(4096) as usize) } {
        Ok(transport) => Some(transport),
        Err(error) => {
            log!("virtio: {device}: {error}");
            None
        }
    }
}

/// Lets the device's interrupt wake vCPU 0.
///
/// Interrupts are edges and only wake the guest up, which then looks at the rings itself. So the
/// device's interrupt status is never read or acknowledged: that would be two exits each time.
pub(crate) fn route_interrupt(device: &MmioDevice) {
    if !apic::route(device.gsi) {
        log!("virtio: {device}: its interrupt cannot be routed, the guest would sleep through it");
    }
}
