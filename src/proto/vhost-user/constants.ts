/** Numbers of the vhost-user protocol (QEMU's interoperability document "Vhost-user Protocol"). */

/** Requests of the front-end. [Front-end message types] */
export const FrontRequest = {
  GET_FEATURES: 1,
  SET_FEATURES: 2,
  SET_OWNER: 3,
  RESET_OWNER: 4,
  SET_MEM_TABLE: 5,
  SET_LOG_BASE: 6,
  SET_LOG_FD: 7,
  SET_VRING_NUM: 8,
  SET_VRING_ADDR: 9,
  SET_VRING_BASE: 10,
  GET_VRING_BASE: 11,
  SET_VRING_KICK: 12,
  SET_VRING_CALL: 13,
  SET_VRING_ERR: 14,
  GET_PROTOCOL_FEATURES: 15,
  SET_PROTOCOL_FEATURES: 16,
  GET_QUEUE_NUM: 17,
  SET_VRING_ENABLE: 18,
  SET_BACKEND_REQ_FD: 21,
  GET_CONFIG: 24,
  SET_CONFIG: 25,
  POSTCOPY_ADVISE: 28,
  POSTCOPY_LISTEN: 29,
  POSTCOPY_END: 30,
  GET_INFLIGHT_FD: 31,
  SET_INFLIGHT_FD: 32,
  RESET_DEVICE: 34,
  GET_MAX_MEM_SLOTS: 36,
  ADD_MEM_REG: 37,
  REM_MEM_REG: 38,
  SET_STATUS: 39,
  GET_STATUS: 40,
} as const;

/** Requests of the back-end, on a channel of their own. [Back-end message types] */
export const BackRequest = { CONFIG_CHANGE: 2 } as const;

/** Bits of the word of protocol features. [Protocol features] */
export const ProtocolFeature = {
  MQ: 1 << 0,
  LOG_SHMFD: 1 << 1,
  REPLY_ACK: 1 << 3,
  BACKEND_REQ: 1 << 5,
  CONFIG: 1 << 9,
  INFLIGHT_SHMFD: 1 << 12,
  RESET_DEVICE: 1 << 13,
  CONFIGURE_MEM_SLOTS: 1 << 15,
} as const;

/** In the flags of a header. [Header] */
export const HeaderFlag = { VERSION: 1, VERSION_MASK: 3, REPLY: 4, NEED_REPLY: 8 } as const;

export const HEADER_BYTES = 12;
/** Of a payload that we take: a memory table of 8 regions has 264 bytes, a configuration space at most 256. */
export const MAX_PAYLOAD_BYTES = 4096;
/** Descriptors in one message: one for each region of a memory table. */
export const MAX_MESSAGE_FDS = 8;
/** Of SET_VRING_KICK, CALL and ERR: no descriptor came along. */
export const NO_FD = 0x100;
/** In the flags of SET_VRING_ADDR: writes to the used ring are to be logged. */
export const VRING_LOG = 1;
/** Guest memory that one bit of the dirty log stands for. */
export const LOG_PAGE_BYTES = 4096;
