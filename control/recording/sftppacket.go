package recording

import "encoding/binary"

// packets cuts bytes into packets and shows the head of each.
type packets struct {
	head []byte // length and begin of the packet under way
	skip int    // bytes of it that are not looked at
	lost bool   // these are no packets
}

func (k *packets) take(p []byte, packet func(head []byte)) {
	for len(p) > 0 && !k.lost {
		if k.skip > 0 {
			n := min(k.skip, len(p))
			k.skip -= n
			p = p[n:]
			continue
		}
		want := 4
		if len(k.head) >= 4 {
			want += min(k.length(), sftpHead)
		}
		n := min(want-len(k.head), len(p))
		k.head = append(k.head, p[:n]...)
		p = p[n:]
		if len(k.head) < want {
			continue
		}
		if want == 4 {
			k.lost = k.length() < 1 || k.length() > maxPacket
			continue
		}
		packet(k.head[4:])
		k.skip = k.length() - (len(k.head) - 4)
		k.head = k.head[:0]
	}
}

func (k *packets) length() int { return int(binary.BigEndian.Uint32(k.head)) }

// fields reads what a packet holds; short is set when it holds less.
type fields struct {
	rest  []byte
	short bool
}

func (f *fields) u32() uint32 {
	if len(f.rest) < 4 {
		f.short, f.rest = true, nil
		return 0
	}
	n := binary.BigEndian.Uint32(f.rest)
	f.rest = f.rest[4:]
	return n
}

func (f *fields) text() string {
	n := f.u32()
	if uint64(n) > uint64(len(f.rest)) {
		f.short, f.rest = true, nil
		return ""
	}
	text := string(f.rest[:n])
	f.rest = f.rest[n:]
	return text
}
