using System;
using Google.Protobuf;
using Google.Protobuf.WellKnownTypes;
using Grpc.Core;
using TileCache.StatusDetails.V1;
using Xunit;
using StatusMessage = TileCache.StatusDetails.V1.Status;

namespace TileCache.Client.Tests
{
    /// <summary>Errors as a call throws them, without a daemon.</summary>
    public sealed class ErrorDetailsTests
    {
        [Fact]
        public void All_details_are_read()
        {
            var status = new StatusMessage();
            status.Details.Add(Pack("google.rpc.ErrorInfo", new ErrorInfo
            {
                Reason = "LIMIT_EXCEEDED",
                Metadata = { { "limit", "4096" } },
            }));
            status.Details.Add(Pack("google.rpc.BadRequest", new BadRequest
            {
                FieldViolations = { new BadRequest.Types.FieldViolation { Field = "tiles", Description = "too many" } },
            }));
            status.Details.Add(Pack("google.rpc.RetryInfo", new RetryInfo
            {
                RetryDelay = Duration.FromTimeSpan(TimeSpan.FromMilliseconds(1250)),
            }));
            status.Details.Add(Pack("google.rpc.Help", new ErrorInfo()));

            ErrorDetails details = ErrorDetails.From(Failure(status.ToByteArray()));

            Assert.Equal("LIMIT_EXCEEDED", details.Reason);
            Assert.Equal("4096", details.Facts["limit"]);
            FieldViolation violation = Assert.Single(details.Violations);
            Assert.Equal("tiles", violation.Field);
            Assert.Equal("too many", violation.Description);
            Assert.Equal(TimeSpan.FromSeconds(1.25), details.RetryAfter);
        }

        [Theory]
        [InlineData("")]
        [InlineData("ff")]
        [InlineData("1a05616263")]
        public void Broken_details_are_left_empty(string digits)
        {
            ErrorDetails details = ErrorDetails.From(Failure(Convert.FromHexString(digits)));

            Assert.Empty(details.Reason);
            Assert.Empty(details.Violations);
            Assert.Null(details.RetryAfter);
        }

        [Fact]
        public void An_error_without_details_has_none()
        {
            ErrorDetails details = ErrorDetails.From(new RpcException(Grpc.Core.Status.DefaultCancelled));

            Assert.Empty(details.Reason);
            Assert.Empty(details.Facts);
        }

        private static Any Pack(string name, IMessage detail)
        {
            return new Any { TypeUrl = "type.googleapis.com/" + name, Value = detail.ToByteString() };
        }

        private static RpcException Failure(byte[] details)
        {
            var trailers = new Metadata { { "grpc-status-details-bin", details } };
            return new RpcException(new Grpc.Core.Status(StatusCode.InvalidArgument, "refused"), trailers);
        }
    }
}
