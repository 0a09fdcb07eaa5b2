package rdp

import "encoding/binary"

// Share control units of the main channel, MS-RDPBCGR 2.2.8.1.1.1.1: length,
// type in the lower four bits, and sender, of two bytes each.
const (
	shareHead     = 6
	shareDemand   = 1
	shareDeactive = 6
	shareTypeMask = 0x0f
)

// share remembers the id of the share that the server demanded.
type share struct{ id uint32 }

// mend returns the server's data with xrdp's Deactivate All, which ends after
// its head, made whole (2.2.2.2): without share id, length and a byte of name,
// clients take it for damaged.
func (s *share) mend(data []byte) ([]byte, bool) {
	if len(data) < shareHead || int(binary.LittleEndian.Uint16(data)) != len(data) {
		return data, false
	}
	switch data[2] & shareTypeMask {
	case shareDemand:
		if len(data) >= shareHead+4 {
			s.id = binary.LittleEndian.Uint32(data[shareHead:])
		}
	case shareDeactive:
		if len(data) != shareHead {
			return data, false
		}
		whole := append([]byte(nil), data...)
		whole = binary.LittleEndian.AppendUint32(whole, s.id)
		whole = append(whole, 1, 0, 0)
		binary.LittleEndian.PutUint16(whole, uint16(len(whole)))
		return whole, true
	}
	return data, false
}
