// Package files serves a container's files to tools that copy, in a process of
// its own.
//
// It owns SFTP and the old protocol of scp; as whom it runs, and so which files
// it reaches, was decided by who started it. Its invariant: a name from the
// other side of scp leads nowhere but into the folder that is being written.
package files

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"os"

	"github.com/pkg/sftp"

	"github.com/remotegpu/remotegpu/protocol/ahead"
)

// largestRead is what one read of a client may ask for: OpenSSH's takes no
// message over 256 KiB, with its header.
const largestRead = 255 << 10

// stream is both directions as one.
type stream struct {
	io.Reader
	io.WriteCloser
}

// SFTP serves standard input and output until the client has ended it.
func SFTP() error {
	return serveSFTP(bufio.NewReaderSize(os.Stdin, 64<<10), os.Stdout)
}

func serveSFTP(in io.Reader, out io.WriteCloser) error {
	host := ahead.NewHost(in)
	host.Append = toAppend
	srv, err := sftp.NewServer(stream{host, &messages{WriteCloser: out, host: host}}, sftp.WithAllocator(), sftp.WithMaxTxPacket(largestRead))
	if err == nil {
		err = srv.Serve()
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// messages writes each message of SFTP whole: the server brings the data of one
// apart from its head, and what goes alone costs every process on the way twice.
type messages struct {
	io.WriteCloser
	host  *ahead.Host // says what goes out for one
	begun []byte
}

// Close is what the server does when it cannot answer any more.
func (m *messages) Close() error {
	m.host.Close()
	return m.WriteCloser.Close()
}

func (m *messages) Write(p []byte) (int, error) {
	message := p
	if len(m.begun) > 0 || !isWhole(p) {
		m.begun = append(m.begun, p...)
		message = m.begun
	}
	if !isWhole(message) {
		return len(p), nil
	}
	m.begun = m.begun[:0]
	if message = m.host.Answer(message); len(message) == 0 {
		return len(p), nil
	}
	if _, err := m.WriteCloser.Write(message); err != nil {
		return 0, err
	}
	return len(p), nil
}

// isWhole reports whether all of the message is there that its length, the
// first four bytes, promises.
func isWhole(message []byte) bool {
	return len(message) >= 4 && len(message)-4 >= int(binary.BigEndian.Uint32(message))
}
